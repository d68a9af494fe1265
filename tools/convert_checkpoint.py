"""Convert a checkpoint: released formats into densedet's, and back without loss.

--model converts CLIP. It reads EVA-CLIP, CLIPSelf, OpenAI CLIP (TorchScript or state dict),
open_clip and densedet's own files, the checkpoints of a distillation (the student's image tower)
included. It writes safetensors with open_clip's names, or with --to released a .pt file with the
published names. Nothing is written unless every tensor fits --model.

A checkpoint of a distillation (model_final.pth) holds the student itself. The result, with weights
interpolated between student and teacher, is the clipself.safetensors beside it.

--config-file converts a released DenseCLIP for the model of a config: every entry of the file is
used and every weight of the model is found, or nothing is written. Take the config whose name ends
in _released: only it computes what the weights were trained for. The result is what
train.init_checkpoint expects. With --to released a checkpoint of densedet becomes a .pth file with
the published names.

Examples:
    python tools/convert_checkpoint.py EVA02_CLIP_B_psz16_s8B.pt eva_b16.safetensors \\
        --model EVA02-B-16
    python tools/convert_checkpoint.py output/clipself/model_final.pth student.safetensors \\
        --model EVA02-B-16 --text-from eva_b16.safetensors
    python tools/convert_checkpoint.py output/clipself/clipself.safetensors distilled.pt \\
        --model EVA02-B-16 --to released --dtype fp16
    python tools/convert_checkpoint.py denseclip_fpn_res50.pth denseclip_rn50.safetensors \\
        --config-file projects/denseclip/configs/ade20k_rn50_denseclip_released.py
"""

import argparse
from pathlib import Path
from typing import Any

from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("input", type=Path, help="checkpoint file of any supported format")
    parser.add_argument(
        "output", type=Path, help=".safetensors; with --to released .pt (CLIP) or .pth (DenseCLIP)"
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--model", help="CLIP: architecture, e.g. EVA02-B-16")
    kind.add_argument(
        "--config-file", metavar="FILE", help="DenseCLIP: a file, or a name of the model zoo"
    )
    parser.add_argument(
        "--to",
        choices=("open_clip", "released"),
        default="open_clip",
        help="open_clip: densedet's own format, with open_clip's names for the towers",
    )
    parser.add_argument(
        "--dtype",
        choices=("as-stored", "fp32", "fp16"),
        default="as-stored",
        help="as-stored: that of the input; with --to released that of the released file",
    )
    parser.add_argument(
        "--flat", action="store_true", help="--to released: the state dict alone, as EVA-CLIP's"
    )
    parser.add_argument("--text-from", help='file (or "shipped") to take the text tower from')
    parser.add_argument("--visual-only", action="store_true", help="leave the text tower out")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    if args.config_file is not None:
        return _convert_model(args)
    return _convert_clip(args)


def _convert_clip(args: argparse.Namespace) -> int:
    from densedet.clip.checkpoints import require_suffix
    from densedet.clip.convert import read_clip, write_open_clip, write_released

    if args.visual_only and args.text_from:
        raise ConfigError("--visual-only leaves out the text tower that --text-from names")
    if args.flat and args.to != "released":
        raise ConfigError("--flat is for --to released")
    require_suffix(args.output, ".pt" if args.to == "released" else ".safetensors")
    weights = read_clip(
        args.input, args.model, text_from=args.text_from, visual_only=args.visual_only
    )
    if args.to == "released":
        write_released(args.output, weights, args.dtype, args.flat)
    else:
        write_open_clip(args.output, weights, args.dtype)
    if weights.student:
        print(
            f"{args.input}: a training checkpoint; this is the student itself, without "
            "interpolation (the interpolated result is the clipself.safetensors beside it)"
        )
    _report(args.output, weights.state, args.model)
    return 0


def _convert_model(args: argparse.Namespace) -> int:
    from densedet.clip.checkpoints import require_suffix, write_weights

    if args.dtype != "as-stored" or args.flat or args.text_from or args.visual_only:
        raise ConfigError("--dtype, --flat, --text-from and --visual-only are for --model")
    require_suffix(args.output, ".pth" if args.to == "released" else ".safetensors")

    from densedet import compat

    compat.apply()
    from densedet.engine.analysis import build_without_weights
    from densedet.engine.checkpoint import read_checkpoint
    from densedet.engine.config import load_config
    from densedet.modeling import denseclip_checkpoint as denseclip
    from densedet.weights import fit_strictly

    model = build_without_weights(load_config(args.config_file))
    if args.to == "released":
        vocabulary = denseclip.guided_vocabulary(model)
        state = fit_strictly(model, read_checkpoint(str(args.input))["model"], args.input)
        denseclip.write_released(args.output, state, vocabulary, args.input)
    else:
        state = denseclip.convert_released(args.input, model)
        write_weights(args.output, state, {})
    _report(args.output, state, args.config_file)
    return 0


def _report(output: Path, state: dict[str, Any], name: str) -> None:
    values = sum(tensor.numel() for tensor in state.values())
    print(f"{output}: {len(state)} tensors, {values:,} values of {name}")


if __name__ == "__main__":
    run_tool(main)
