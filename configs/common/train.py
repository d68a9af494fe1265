# What every training shares: where results go, how long, in which precision. Read by
# densedet.engine.options, which refuses a key that is not here.
train = dict(
    output_dir="output/default",
    # weights to start from or to evaluate: .pth or .safetensors, strict; "" = as the model is built
    init_checkpoint="",
    max_iter=90000,
    # "fp32"; "bf16" (autocast, any device); "fp16" (autocast and loss scaling, CUDA or CPU)
    precision="fp32",
    # arguments of torch.amp.GradScaler for fp16; dynamic=False keeps init_scale as it is
    grad_scaler=dict(dynamic=True),
    # clip the global norm of the gradients, or None: dict(max_norm=1.0, norm_type=2.0)
    clip_grad=None,
    # arguments of DistributedDataParallel
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    # batch norms over the batches of all processes (CUDA); needless in one process
    sync_batch_norm=False,
    # a checkpoint every `period` iterations, of which the last `max_to_keep` stay
    checkpointer=dict(period=5000, max_to_keep=5),
    eval_period=5000,  # 0: only after the last iteration
    log_period=20,
    device="auto",  # "auto" (CUDA where there is one, else CPU), "cuda", "cpu", "mps"
    seed=0,
    num_threads=None,  # CPU threads of torch; None: torch's choice
    hooks=[],  # more detectron2.engine.HookBase, as L(...)(...)
    # seconds that a process waits for the others, before it says which one does not answer
    timeout=dict(steps=600.0, evaluation=1800.0),
)
