"""Tokenise the conversations of a PURE run before it is trained: text by the tokenizer, pictures by the VQGAN.

python scripts/tokenise.py --config training/configs/pure.yaml [key=value ...]
accelerate launch --num_processes 8 scripts/tokenise.py --config training/configs/pure.yaml

What is there already is kept, so it may be stopped and started again. Pictures that cannot be read are named at the
end. A run does the same on the way where it has not been done; training/pure/tokens.py says what is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _pack import load_pack

load_pack()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings on top of the file's")
    options = parser.parse_intermixed_args(argv)
    try:
        failed = tokenise(options.config, options.settings)
    except ModuleNotFoundError as error:
        raise SystemExit(f"training needs {error.name}: pip install '.[train]' (in the pack's folder)") from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if failed:
        raise SystemExit(f"{failed} conversations could not be tokenised; the run leaves them out")


def tokenise(config_file: Path, settings: Sequence[str]) -> int:
    """Tokenise this process's share of what is missing. Returns how many of it failed."""
    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    from realisr.training.engine.config import read_config
    from realisr.training.engine.engine import accelerator_available
    from realisr.training.pure.config import PUREConfig
    from realisr.training.pure.method import make_tokeniser
    from realisr.training.pure.samples import missing, usable
    from realisr.training.pure.start import load_vqgan

    process = PartialState(cpu=not accelerator_available())
    config = read_config(config_file, settings, PUREConfig)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokeniser = make_tokeniser(config)
    entries, _, failures = usable(config, tokeniser)
    waiting = missing(entries, tokeniser)
    unaligned = tokeniser.unaligned([entry.conversation for entry in entries])
    if process.is_main_process:
        print(f"{len(entries)} conversations, {len(entries) - len(waiting)} tokenised already")
        if unaligned:
            print(
                f"{unaligned} have pictures that are no crop's size: each is cut at a place of its own, as in the "
                "authors' code, so that low and high quality do not lie on each other. Better cut them before."
            )
    vqgan = load_vqgan(config.vqgan, process.device)
    own = waiting[process.process_index :: process.num_processes]
    for entry in tqdm(own, unit="conversation", disable=not process.is_main_process):
        try:
            tokeniser.tokenise(entry, tokeniser.crops(entry), vqgan)
        except OSError as error:
            failures.append((entry.conversation.name, f"{type(error).__name__}: {error}"))
    for name, reason in failures:
        print(f"{name}: {reason}")
    process.wait_for_everyone()
    return len(failures)


if __name__ == "__main__":
    main()
