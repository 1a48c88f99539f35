"""What range to represent.

Observing is collecting statistics of a stream of batches; only then is a range chosen, and
`affine.choose_qparams` makes the scale and the zero point of it. The observers differ in the range:

    MinMaxObserver                 all that was seen: one outlier wrecks it
    MovingAverageMinMaxObserver    the extremes of a typical batch
    PercentileObserver             all but a fixed share of the values
    HistogramObserver              the range that costs least, by squared error or by entropy

Each works per tensor, per channel (`axis`) or per group of a weight (`group_size`), in memory that
does not grow with the stream, in any module through `observing`; `rounding_outputs` shows
what the chosen ranges do to it.

`observer` has what every observer does, `extremes` the first two, `histograms` the others; `squared_error` and
`divergence` judge ranges on the histogram of `streaming`, which `counting` fills at speed.
"""

from qtutor.observers.extremes import MinMaxObserver, MovingAverageMinMaxObserver, round_min_max
from qtutor.observers.histograms import BINS, HistogramObserver, PercentileObserver
from qtutor.observers.hooks import observing, rounding_outputs
from qtutor.observers.observer import Observer
from qtutor.observers.squared_error import squared_error
from qtutor.observers.streaming import StreamingHistogram
