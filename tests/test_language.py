"""The language model against the formulas written out in float64; what a change costs; the model and text that ship."""

import math
from itertools import pairwise

from qtutor.language import (
    KeyValueCache,
    Llama,
    LlamaConfig,
    Measured,
    bits_per_character,
    generate,
    hessians,
    kl,
    layer_inputs,
    linear_layers,
    predictions,
    small,
    text,
)
from qtutor.language.llama import rotate_by_position

import pytest
import torch
import train_small
from hypothesis import given, settings
from hypothesis import strategies as st

# Unequal dimensions, so that a transposition fails.
SIZES = {"vocabulary": 11, "width": 24, "layers": 2, "heads": 6, "key_value_heads": 2, "hidden": 20}


def tiny(**changes):
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**{**SIZES, **changes}))
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


TOKENS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))


def by_the_formulas(model, tokens):
    """One text `(T,)`, number by number in float64."""
    config, w = model.config, {name: weight.double() for name, weight in model.state_dict().items()}
    d, share = config.width // config.heads, config.heads // config.key_value_heads

    def norm(x, weight):
        return weight * x / math.sqrt(float((x * x).mean()) + config.norm_eps)

    def turn(z, position):
        z = z.clone()
        for i in range(d // 2):
            a, b = (2 * i, 2 * i + 1) if config.interleaved else (i, i + d // 2)
            angle = position * config.rope_base ** (-2 * i / d)
            first, second = float(z[a]), float(z[b])
            z[a] = first * math.cos(angle) - second * math.sin(angle)
            z[b] = first * math.sin(angle) + second * math.cos(angle)
        return z

    xs = [w["embedding.weight"][token] for token in tokens]
    for layer in range(config.layers):
        at = f"blocks.{layer}."
        names = ("query", "key", "value")
        normed = [norm(x, w[f"{at}attention_norm.weight"]) for x in xs]
        q, k, v = ([w[f"{at}attention.{name}.weight"] @ x for x in normed] for name in names)
        for t in range(len(xs)):
            heads = []
            for h in range(config.heads):
                kv = slice(h // share * d, (h // share + 1) * d)
                query = turn(q[t][h * d : (h + 1) * d], t)
                scores = torch.stack([query @ turn(k[s][kv], s) / math.sqrt(d) for s in range(t + 1)])
                shares = scores.softmax(dim=0)
                heads.append(sum(shares[s] * v[s][kv] for s in range(t + 1)))
            xs[t] = xs[t] + w[f"{at}attention.output.weight"] @ torch.cat(heads)
            h = norm(xs[t], w[f"{at}feed_forward_norm.weight"])
            gate, up = w[f"{at}feed_forward.gate.weight"] @ h, w[f"{at}feed_forward.up.weight"] @ h
            xs[t] = xs[t] + w[f"{at}feed_forward.down.weight"] @ (gate / (1 + (-gate).exp()) * up)
    head = w["embedding.weight"] if config.tied else w["head.weight"]
    return torch.stack([head @ norm(x, w["norm.weight"]) for x in xs])


@pytest.mark.parametrize("changes", [{}, {"interleaved": True, "tied": False, "rope_base": 7.0}, {"heads": 2}])
def test_the_model_computes_its_formulas(changes):
    model = tiny(**changes)
    wanted = torch.stack([by_the_formulas(model, row) for row in TOKENS])
    with torch.no_grad():
        found = model(TOKENS)
        torch.testing.assert_close(model.double()(TOKENS), wanted, rtol=1e-6, atol=1e-6)  # angles are kept in float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)  # float32: sums of seven digits


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 8), max_size=3, unique=True).map(sorted))
def test_a_cache_changes_nothing(cuts):
    model, cache = tiny(), KeyValueCache()
    ends = [0, *cuts, TOKENS.shape[1]]
    with torch.no_grad():
        parts = [model(TOKENS[:, a:b], cache) for a, b in pairwise(ends)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(TOKENS), rtol=1e-5, atol=1e-5)
    assert cache.length == TOKENS.shape[1]


def test_the_cache_hands_out_what_was_rounded():
    cache = KeyValueCache(round_keys=lambda keys: keys.round(), round_values=torch.zeros_like)
    with torch.no_grad():
        tiny()(TOKENS[:, :5], cache)
    keys, values = cache.kept(1)
    assert keys.shape == values.shape == (2, 2, 5, 4)
    assert torch.equal(keys, keys.round())
    assert keys.any()
    assert not values.any()
    with pytest.raises(ValueError, match="holds nothing of layer 2"):
        cache.kept(2)
    with pytest.raises(ValueError, match="must keep the shape"):
        tiny()(TOKENS, KeyValueCache(round_keys=lambda keys: keys[..., :2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_runs_in_other_types(dtype):
    model = tiny()
    with torch.no_grad():
        other = model.to(dtype)(TOKENS)
    assert other.dtype == dtype


def test_no_token_sees_what_follows():
    model, other = tiny(), TOKENS.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 11
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS)[:, :6], model(other)[:, :6], rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(distance=st.integers(0, 30), start=st.integers(0, 30), interleaved=st.booleans())
def test_a_turned_product_depends_on_the_distance_alone(distance, start, interleaved):
    config = LlamaConfig(vocabulary=1, width=8, layers=1, heads=1, key_value_heads=1, hidden=1, rope_base=50.0)
    cos, sin = config.turns(64)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(2)).expand(2, 64, 8)
    q, k = (rotate_by_position(z, cos, sin, interleaved=interleaved).double() for z in (q, k))
    torch.testing.assert_close(q[start] @ k[start + distance], q[0] @ k[distance], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.tensor([1, 2]), r"not int64 of shape \(2,\)"),
        (torch.tensor([[0.5]]), "not float32"),
        (torch.empty(1, 0, dtype=torch.long), "both at least 1"),
        (torch.tensor([[3, 11]]), "from 0 to 10; these from 3 to 11"),
        (torch.tensor([[-1, 4]]), "these from -1 to 4"),
    ],
)
def test_tokens_that_are_none_are_refused(tokens, words):
    with pytest.raises(ValueError, match=words):
        tiny()(tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"heads": 5}, "does not split"), ({"key_value_heads": 4}, "cannot share"), ({"layers": 0}, "at least 1")],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        LlamaConfig(**{**SIZES, **changes})


# --- What a change costs.


def test_bits_and_kl_are_those_of_their_definitions():
    model, other = tiny(), tiny(interleaved=True)
    tokens = torch.randint(11, (31,), generator=torch.Generator().manual_seed(3))
    losses, divergences = [], []
    for start in range(0, 30, 5):
        with torch.no_grad():
            p, r = (m(tokens[None, start : start + 5])[0].double().softmax(dim=-1) for m in (model, other))
        losses.append(sum(-math.log2(p[i, tokens[start + i + 1]]) for i in range(5)) / 5)
        divergences.append(sum(float(r[i, v]) * math.log2(r[i, v] / p[i, v]) for i in range(5) for v in range(11)) / 5)
    bits, away = bits_per_character(model, tokens, 5), kl(model, other, tokens, 5)
    assert bits.windows.tolist() == pytest.approx(losses, rel=1e-5)
    assert away.windows.tolist() == pytest.approx(divergences, rel=1e-4)  # differences of logarithms in float32
    said, wanted = predictions(model, tokens, 5), predictions(other, tokens, 5)
    assert torch.equal(kl(said, wanted, tokens, 5).windows, away.windows)
    assert torch.equal(bits_per_character(said, tokens, 5).windows, bits.windows)
    assert kl(model, model, tokens, 5).mean == 0
    # Student's t at 0.975 with five degrees of freedom, from a table.
    half = 2.5706 * float(torch.tensor(losses).std()) / 6**0.5
    assert (bits.low, bits.high) == pytest.approx((bits.mean - half, bits.mean + half), rel=1e-4)


def test_a_finding_says_no_more_than_its_interval():
    base = Measured(torch.tensor([1.0, 3.0, 2.0, 5.0]))
    worse = Measured(base.windows + torch.tensor([0.1, 0.11, 0.12, 0.1]))
    noise = Measured(base.windows + torch.tensor([0.1, -0.1, 0.2, -0.05]))
    assert worse.finding("INT3", base, "INT4").startswith("INT3: 0.1075 bits more than INT4 (0.0")
    assert base.finding("INT4", worse, "INT3").startswith("INT4: 0.1075 bits less than INT3 (0.0")
    assert "no difference that these 4 windows can tell" in noise.finding("INT3", base, "INT4")
    assert "no difference" in base.finding("INT4", base, "INT4")
    with pytest.raises(ValueError, match="3 windows cannot be paired with 4"):
        Measured(base.windows[:3]).minus(base)


def test_texts_that_cannot_be_measured_are_refused():
    model, tokens = tiny(), torch.zeros(21, dtype=torch.long)
    with pytest.raises(ValueError, match="two windows of 11 take 23"):
        bits_per_character(model, tokens, 11)
    with pytest.raises(ValueError, match=r"of shape \(length,\)"):
        bits_per_character(model, tokens[None], 5)
    with pytest.raises(ValueError, match="not those of this text"):
        kl(model, predictions(model, tokens, 5), tokens, 4)
    with pytest.raises(ValueError, match="not those of this text"):
        bits_per_character(predictions(model, tokens[:16], 5), tokens, 5)


def test_hessians_are_of_what_layers_read():
    model, read = tiny(), []
    tokens = torch.randint(11, (2 * 2048 + 1,), generator=torch.Generator().manual_seed(5))
    found = hessians(model, tokens, 8)
    assert list(found) == list(linear_layers(model))
    assert len(found) == 14
    hook = model.blocks[1].feed_forward.down.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        model(tokens[:-1].view(-1, 8))
    hook.remove()
    (x,) = (batch.flatten(0, 1).double() for batch in read)
    wanted = x.T @ x / len(x)
    torch.testing.assert_close(found["blocks.1.feed_forward.down"], wanted, rtol=1e-4, atol=1e-5)  # float32 inputs
    assert torch.equal(found["blocks.0.attention.query"], found["blocks.0.attention.value"])
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    with pytest.raises(ValueError, match="no linear layer"):
        hessians(torch.nn.Embedding(11, 2), tokens)


# --- What ships.


def test_a_layer_that_never_runs_has_no_inputs():
    model = tiny()
    model.idle = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="Llama never calls idle"):
        hessians(model, TOKENS.flatten(), 5)
    with pytest.raises(ValueError, match="does not call 'idle'"):
        layer_inputs(model, "idle", TOKENS.flatten(), 5)


def test_the_small_model_ships_small_and_reads_python():
    assert small.CHECKPOINT.stat().st_size < 3_000_000
    assert text.TEXT.stat().st_size < 120_000
    model = small.load()
    assert model is not small.load()
    held_out = small.encode(small.held_out_text())[: 20 * 256 + 1]
    assert bits_per_character(model, held_out).high < 2.4  # ASCII takes 7, and letter frequencies alone over 4
    words = generate(model, "The following example ", 12)
    assert len(words) == 12
    assert generate(model, "The following example ", 12, temperature=1, seed=3) == generate(
        model, "The following example ", 12, temperature=1, seed=3
    )


def test_generating_follows_the_model_token_by_token():
    model, prompt = small.load(), "A function call "
    tokens = small.encode(prompt)
    for _ in range(5):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax(dim=-1, keepdim=True)])
    assert generate(model, prompt, 5) == small.decode(tokens[-5:])
    for wrong, words in (({"prompt": ""}, "empty"), ({"temperature": -1.0}, "0 or more")):
        with pytest.raises(ValueError, match=words):
            generate(**{"model": model, "prompt": prompt, "count": 1, **wrong})
    cache = KeyValueCache()
    generate(model, prompt, 1, cache=cache)
    with pytest.raises(ValueError, match="give an empty one"):
        generate(model, prompt, 1, cache=cache)


def test_the_held_out_text_was_not_trained_on():
    trained, held_out = small.training_text(), small.held_out_text()
    assert trained.isascii()
    assert len(held_out) > 30_000
    lines = [paragraph for paragraph in held_out.split("\n\n") if paragraph]
    assert not set(lines) & set(trained.split("\n\n"))
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in text.TEXT.with_name("text_licence.txt").read_text()


def test_the_tokens_are_ascii():
    assert small.decode(small.encode("def f(x):\n")) == "def f(x):\n"
    with pytest.raises(ValueError, match="ASCII only, and the text holds 'é'"):
        small.encode("café")
    for strange in (torch.tensor([128]), torch.tensor([0.5]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="from 0 to 127"):
            small.decode(strange)


@pytest.mark.slow
def test_training_repeats_itself_and_learns():
    config = LlamaConfig(vocabulary=128, width=32, layers=1, heads=2, key_value_heads=2, hidden=32)
    first, again = (train_small.train(1, steps=30, config=config) for _ in range(2))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    tokens = small.encode(small.held_out_text())[:2049]
    untrained = train_small.initialized(config, torch.Generator().manual_seed(1))
    assert bits_per_character(first, tokens).minus(bits_per_character(untrained, tokens)).high < -0.5  # of seven


def test_an_orthogonal_step_keeps_directions_and_evens_sizes():
    """The polynomial brings singular values between 0.68 and 1.14, says its source."""
    matrix = torch.randn(24, 10, generator=torch.Generator().manual_seed(4))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    step = train_small.orthogonal(matrix)
    found = u.T @ step @ v.T
    assert ((found.diag() > 0.6) & (found.diag() < 1.3)).all()
    torch.testing.assert_close(found, found.diag().diag(), rtol=0, atol=1e-4)
