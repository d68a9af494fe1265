"""Train the tiny CLIP of Shapes World from image-caption pairs and measure it on crops."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from densedet.cli import ToolParser, run_tool
from densedet.engine.contrastive_recipe import ContrastiveRecipe
from densedet.errors import ConfigError
from densedet.files import write_text
from densedet.vocabulary import Vocabulary

if TYPE_CHECKING:
    from open_clip.model import CLIP


def measure(model: "CLIP", scenes: int) -> dict[str, float]:
    """Accuracy in percent on the crops of validation scenes, 64 ways, template "single"."""
    from densedet.clip import build_text_encoder, build_visual
    from densedet.evaluation.zero_shot import scene_crops, zero_shot_accuracy

    names = list(Vocabulary.named("shapes_world").of_kind("thing").labels)
    model.eval()
    text = build_text_encoder(model)
    visual = build_visual(model)
    crops, labels = scene_crops(seed=0, split="val", count=scenes, size=visual.image_size[0])
    accuracy = zero_shot_accuracy(
        visual, crops, labels, names, text.embed_names(names, template_set="single")
    )
    return {"crop_accuracy": round(accuracy, 2), "crops": len(labels), "scenes": scenes}


def pretrain(recipe: ContrastiveRecipe, output: Path, log_every: int) -> None:
    """Run the recipe, writing weights to ``output`` and the loss curve beside it."""
    import torch
    from open_clip.tokenizer import SimpleTokenizer
    from tqdm import tqdm

    from densedet.clip.tiny import build_tiny_clip, export_tiny_weights
    from densedet.engine.contrastive import ContrastivePretrainer

    torch.manual_seed(recipe.seed)
    model = build_tiny_clip().train()
    tokenizer = SimpleTokenizer(context_length=model.context_length)
    trainer = ContrastivePretrainer(model, tokenizer, recipe)
    curve = []
    progress = tqdm(trainer.batches(), unit="it", mininterval=5)
    for iteration, (images, captions) in enumerate(progress, start=1):
        loss = trainer.step(images, list(captions))
        if iteration % log_every == 0 or iteration == recipe.iterations:
            point = {"iteration": iteration, "loss": loss, **measure(model, scenes=50)}
            model.train()
            curve.append(point)
            progress.set_postfix(loss=f"{loss:.3f}", crops=f"{point['crop_accuracy']:.1f}")
    export_tiny_weights(model.eval(), trainer.used_tokens, output)
    write_text(output.with_suffix(".curve.json"), json.dumps(curve, indent=1))


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = ToolParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/densedet-tiny.safetensors"))
    parser.add_argument("--iterations", type=int, default=ContrastiveRecipe.iterations)
    parser.add_argument("--batch-size", type=int, default=ContrastiveRecipe.batch_size)
    parser.add_argument("--seed", type=int, default=ContrastiveRecipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=500, help="iterations between measures")
    parser.add_argument("--eval-only", action="store_true", help="measure the shipped weights")
    parser.add_argument("--weights", default="shipped", help="file to measure with --eval-only")
    parser.add_argument("--scenes", type=int, default=300, help="scenes to measure on")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} must not be negative")
    if min(args.iterations, args.batch_size, args.threads, args.log_every, args.scenes) < 1:
        raise ConfigError("iterations, batch size, threads, log-every and scenes must be positive")
    import torch

    from densedet.clip import create_clip

    torch.set_num_threads(args.threads)
    if not args.eval_only:
        recipe = ContrastiveRecipe(args.iterations, args.batch_size, seed=args.seed)
        pretrain(recipe, args.output, args.log_every)
    weights = args.weights if args.eval_only else str(args.output)
    print(json.dumps(measure(create_clip("densedet-tiny", weights), args.scenes)))
    return 0


if __name__ == "__main__":
    run_tool(main)
