"""The promise of every flow, asked of models drawn at random: a model that runs, repeats itself and computes what the
float one does; or a refusal that its owner can read.
"""

import os

import pytest
from drawn import WAYS, broken, cases, finite
from hypothesis import HealthCheck, Phase, assume, given, settings
from thoroughness import examples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]
SLOW = {"suppress_health_check": list(HealthCheck), "phases": [Phase.explicit, Phase.generate, Phase.shrink]}


def ask(case):
    assume(finite(case))
    answers = {way: broken(way, case) for way in WAYS}
    assert {way: said for way, said in answers.items() if said not in ("", "refused")} == {}


@settings(max_examples=examples(5), **SLOW)
@given(cases())
def test_a_flow_keeps_its_promise_or_refuses_in_words(case):
    ask(case)


@pytest.mark.system
@settings(max_examples=int(os.environ.get("QTUTOR_MODELS", "400")), derandomize=False, **SLOW)
@given(cases())
def test_two_thousand_answers_keep_the_promise(case):
    ask(case)
