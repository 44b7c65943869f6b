"""A device that this process has lost: after an illegal access every call fails, in this process and in no other."""

import sys

import torch
from stages import LOST


def leave_if_lost() -> None:
    """End this process where no call works any more, so that `watched.py` begins another behind what is done.

    Gives back the memory that torch holds for nothing, too. Nothing happens where no device was asked for anything.
    """
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        print(f"the device is lost: {' '.join(str(error).split())[:200]}", file=sys.stderr, flush=True)
        raise SystemExit(LOST) from None
