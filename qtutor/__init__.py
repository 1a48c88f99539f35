"""qtutor: the exact maths, live explorers and exercises behind the quantization course.

Rooms, from the ground up (imports only ever point to an earlier line):

    threads      how PyTorch's threads wait for one another, and how many there are
    words        how numbers and errors are said in a sentence
    quick        imports nbformat without what nobody here needs
    affine       the map between real numbers and integer codes; its error
    machine      what this computer is, in words
    vision       makes a torchvision that does not match torch importable
    manifest     what the course knows of each lesson
    storage      where qtutor keeps things, whole or not at all
    models       any model seen from outside: copied, fed, traced, its operators known
    observers    what range to represent
    lowbit       formats of four bits and fewer, and what makes them cost less
    fusion       what may be folded and merged, proven, and the memory traffic it saves
    samples      the data and the models that the lessons use, and how those are trained and kept
    language     a language model in plain torch, one that ships, and what rounding it costs in bits
    simulation   any model as if some of its layers were integers
    workflows    PyTorch's own quantization flows behind thin, stable names; every conversion checks itself
    repair       equalize layers, correct biases
    diagnosis    which layer hurts, on any model, and what helps
    benchmark    size, accuracy and latency, compared fairly
    shipping     from a diagnosis to a model that is shipped, and what came out, in sentences
    runtimes     one model in every CPU runtime that is here
    lottery      how threads that wait for one another slow a busy machine down
    roofline     what this machine could do at most, and where each layer sits
    claims       what articles claim, and verdicts
    published    the claims of lesson 09
    plots        a result in, a plotly figure out
    explorers    live widgets: move a control, watch the mathematics
    exercises    questions, checkers, hints, solutions and progress
    course       lessons run whole, whether a computer is ready, the course as a site, what instructors read
    cli          the `qtutor` command, one module a subcommand

Nothing is re-exported here: `from qtutor.affine import quantize` shows where a name lives. Importing it before torch
lets PyTorch's threads wait calmly on a busy computer: `qtutor.threads` says how.
"""

from qtutor import threads

__version__ = "0.1.0"

threads.settle()
