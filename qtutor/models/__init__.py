"""Any `nn.Module`, seen from outside: copied, fed, traced, its operators known.

operators    what each operator does to ranges, scales and codes: the one table
tensors      the tensors in what a model takes and gives, and its scores
batches      data as people hand them in
copying      the one way to copy a model
running      a run watched: whom it calls, what it gives, how far two outputs agree
tracing      a model traced, and where that or a run fails, in words
known        what is certain of a value in a trace: its dtype, where it is
bytecode     what the owner's own code asks of layers beside calling them
"""
