"""Size, latency, peak memory and accuracy of models, compared fairly."""

from qtutor.benchmark.comparing import check_entries, compare
from qtutor.benchmark.comparison import Comparison
from qtutor.benchmark.predictions import Flips, Model, accuracy, flips
from qtutor.benchmark.seeds import seed_by_seed, spread
from qtutor.benchmark.size import size_bytes
