"""Which ffmpeg is run: the build pinned through imageio-ffmpeg, or the one named by STILLSOUND_FFMPEG."""

import os
import shutil

import imageio_ffmpeg

from configs.load import UserError


def ffmpeg_exe() -> str:
    """Absolute path of the ffmpeg program. `UserError` where STILLSOUND_FFMPEG names none."""
    named = os.environ.get("STILLSOUND_FFMPEG")
    if not named:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    path = shutil.which(named)
    if not path:
        raise UserError(f"STILLSOUND_FFMPEG={named}: no such program; name an ffmpeg or unset it")
    return path
