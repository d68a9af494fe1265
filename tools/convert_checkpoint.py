"""Convert a CLIP checkpoint: released formats into densedet's, and back without loss.

Reads EVA-CLIP, CLIPSelf, OpenAI CLIP (TorchScript or state dict), open_clip and densedet's own
files, the checkpoints of a distillation (the student's image tower) included. Writes safetensors
with open_clip's names, or with --to released a .pt file with the published names. Nothing is
written unless every tensor fits --model.

A checkpoint of a distillation (model_final.pth) holds the student itself. The result, with weights
interpolated between student and teacher, is the clipself.safetensors beside it.

Examples:
    python tools/convert_checkpoint.py EVA02_CLIP_B_psz16_s8B.pt eva_b16.safetensors \\
        --model EVA02-B-16
    python tools/convert_checkpoint.py output/clipself/model_final.pth student.safetensors \\
        --model EVA02-B-16 --text-from eva_b16.safetensors
    python tools/convert_checkpoint.py output/clipself/clipself.safetensors distilled.pt \\
        --model EVA02-B-16 --to released --dtype fp16
"""

import argparse
from pathlib import Path

from densedet.cli import ToolParser, run_tool
from densedet.clip.checkpoints import require_suffix
from densedet.clip.convert import read_clip, write_open_clip, write_released
from densedet.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("input", type=Path, help="checkpoint file of any supported format")
    parser.add_argument("output", type=Path, help=".safetensors; .pt with --to released")
    parser.add_argument("--model", required=True, help="architecture, e.g. EVA02-B-16")
    parser.add_argument("--to", choices=("open_clip", "released"), default="open_clip")
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
    values = sum(tensor.numel() for tensor in weights.state.values())
    if weights.student:
        print(
            f"{args.input}: a training checkpoint; this is the student itself, without "
            "interpolation (the interpolated result is the clipself.safetensors beside it)"
        )
    print(f"{args.output}: {len(weights.state)} tensors, {values:,} values of {args.model}")
    return 0


if __name__ == "__main__":
    run_tool(main)
