"""The tokenizer against the library that SmolLM2's own was trained with."""

import json
from functools import cache

from qtutor.language import small
from qtutor.language.tokenizer import BytePairs

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from thoroughness import examples


@cache
def both():
    """Hugging Face's tokenizer, its steps those of SmolLM2, taught 500 merges; and ours with the same ones."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers (the extra system)")
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True)]
    steps.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    teacher = tokenizers.trainers.BpeTrainer(vocab_size=256 + 500, initial_alphabet=letters, show_progress=False)
    theirs.train_from_iterator([small.training_text()[:200_000]], teacher)
    learned = json.loads(theirs.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in learned["merges"]]
    return theirs, BytePairs(sorted(learned["vocab"], key=learned["vocab"].get), merges)


@pytest.mark.system
@settings(max_examples=examples(300), deadline=None)
@given(st.text() | st.text("aeinrst 's\n\t_19.,-é½٣", max_size=40))
@example("  it's 12 o'clock,\n\n  isn't it?  ")
def test_tokens_are_those_of_hugging_face(text):
    theirs, ours = both()
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.system
def test_a_whole_text_has_the_tokens_of_hugging_face():
    theirs, ours = both()
    text = small.held_out_text()
    assert ours.encode(text).tolist() == theirs.encode(text).ids
