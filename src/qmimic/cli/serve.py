"""`qmimic serve`: a web page that shows what a detector sees."""

import argparse
import os
import sys
from pathlib import Path

from qmimic.cli.grammar import Commands
from qmimic.errors import InputError


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    serve = commands.add_parser(
        "serve", help="open a local web page that runs detectors on pictures or a camera, side by side"
    )
    serve.add_argument(
        "what",
        type=Path,
        nargs="+",
        metavar="RUN|FILE",
        help="run folders, .safetensors, .onnx, .xml, .pte files, or zoo:NAME",
    )
    serve.add_argument("--port", type=int, default=8000, help="port; 0: any free one")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to bind to; 0.0.0.0 opens the page to other machines"
    )
    serve.add_argument(
        "--public", metavar="URL", help="the page's address behind a proxy: https://name or https://name/path"
    )
    serve.add_argument("--max-mib", type=float, default=32, help="largest picture file, MiB")
    serve.add_argument("--max-mpx", type=float, default=50, help="largest picture, million pixels")
    serve.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1), help="pictures computed at once")
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from qmimic.serve.limits import MIB, Limits
    from qmimic.serve.models import collect
    from qmimic.serve.safety import is_local, public_address
    from qmimic.serve.server import bound, serve

    if not 0 < options.max_mib <= 1024 or not 0 < options.max_mpx <= 100 or not 1 <= options.threads <= 256:
        raise InputError("--max-mib must be above 0 and at most 1024, --max-mpx at most 100, and --threads 1 to 256.")
    limits = Limits(int(options.max_mib * MIB), int(options.max_mpx * 1e6), options.threads)
    public = public_address(options.public) if options.public is not None else None
    with bound(options.host, options.port) as listening:  # before spending seconds on models
        shelf = collect(options.what)
        for sentence in shelf.left_out:
            print(f"qmimic: {sentence}", file=sys.stderr)
        if not is_local(options.host):
            print(
                f"qmimic: anyone who reaches {options.host} can use this page; there is no password.", file=sys.stderr
            )
        name = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{name}:{listening.getsockname()[1]}"

        def ready() -> None:
            print(f"{len(shelf.models)} model{'' if len(shelf.models) == 1 else 's'}: {', '.join(shelf.models)}")
            print(f"Open {f'{public.origin}{public.path}/' if public else address} (Ctrl-C to stop)", flush=True)

        serve(shelf, limits, listening, options.host, public, ready)
    return 0
