"""qtutor: the exact maths, live explorers and exercises behind the quantization course.

Rooms, from the ground up (imports only ever point to an earlier line):

    threads      how PyTorch's threads wait for one another, and how many there are
    quick        plotly imported without what no kernel needs
    affine       the map between real numbers and integer codes; its error
    machine      what this computer is, in words
    vision       makes a torchvision that does not match torch importable
    storage      where qtutor keeps things, whole or not at all
    observers    what range to represent
    models       any model seen from outside: copied, its operators known
    capture      what a model calls and computes; where and why capturing it fails
    dataflow     which tensors go where in a model, and the bytes that moves
    fusion       what may be merged, proven, and the memory traffic it saves
    samples      the data and the models that the lessons use
    batches      calibration data as people hand them in, checked
    narrow       fewer than 8 bits in kernels that know 8 alone
    saved        a quantized model as a file without code
    workflows    PyTorch's own quantization flows behind thin, stable names
    simulation   any model as if some of its layers were integers
    measuring    what rounding some layers does to the output, in one process or many
    local        what rounding a layer does to its own tensors, in words too
    repair       equalize, correct biases, keep a few layers in floating point
    diagnosis    which layer hurts, on any model
    benchmark    size, accuracy and latency, compared fairly
    runtimes     one model in every CPU runtime that is here
    roofline     what this machine could do at most, and where each layer sits
    plots        a result in, a plotly figure out
    explorers    live widgets: move a control, watch the mathematics
    exercises    questions, checkers, hints, solutions and progress
    preflight    whether a computer is ready for the course
    notebooks    a notebook, run from beginning to end
    book         the course as a site to read
    cli          the `qtutor` command

Nothing is re-exported here: `from qtutor.affine import quantize` shows where a name lives. Importing it before torch
lets PyTorch's threads wait calmly on a busy computer: `qtutor.threads` says how.
"""

from qtutor import threads

__version__ = "0.1.0"

threads.settle()
