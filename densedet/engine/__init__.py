"""The training loop pieces that Detectron2 lacks, and the two jobs built from them.

- :mod:`~densedet.engine.train`: ``train(cfg)``, ``evaluate(cfg)``, ``do_test(cfg, model)``;
- :mod:`~densedet.engine.config`: LazyConfig files and overrides, checked;
- :mod:`~densedet.engine.launch`: one process, ``--num-gpus`` or ``torchrun``;
- :mod:`~densedet.engine.trainer`, :mod:`~densedet.engine.hooks`, :mod:`~densedet.engine.writers`,
  :mod:`~densedet.engine.checkpoint`: the parts of the loop;
- :mod:`~densedet.engine.optim`, :mod:`~densedet.engine.schedule`: parameter groups, learning rates.
"""
