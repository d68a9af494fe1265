"""Speed and memory, each measured against the implementation that it replaces.

``tools/benchmark.py`` is the command line; ``docs/benchmarks.md`` has figures. Both sides of a
comparison run in turn in one process on the same data, and their results are compared too.
"""
