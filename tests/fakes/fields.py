"""Field-coded H.264, as AVCHD camcorders write it: every field is a packet of its own, a frame has the time
of its first field.

No encoder at hand makes it, so it is written here bit by bit: every macroblock is raw samples (I_PCM), every
frame a random access point. Names of syntax elements are those of ITU-T H.264, 7.3.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.fakes.media import NOISE, RATE_HZ, card
from tests.ingest.clip.test_clipper import ffmpeg, soundfile

SIDE_PX = 64
MB_PX = 16


class Bits:
    """A string of bits, as the standard describes them."""

    def __init__(self) -> None:
        self.text = ""

    def u(self, width: int, value: int) -> None:
        """u(n)."""
        self.text += f"{value:0{width}b}"

    def ue(self, *values: int) -> None:
        """ue(v), of each value."""
        for value in values:
            code = f"{value + 1:b}"
            self.text += "0" * (len(code) - 1) + code

    def align(self) -> None:
        """pcm_alignment_zero_bit."""
        self.text += "0" * (-len(self.text) % 8)

    def unit(self, kind: int, ref: int) -> bytes:
        """A NAL unit with its stop bit and emulation prevention."""
        self.text += "1"
        self.align()
        body = bytearray()
        zeros = 0
        for byte in int(self.text, 2).to_bytes(len(self.text) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                body.append(3)
                zeros = 0
            body.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([ref << 5 | kind]) + bytes(body)


def headers() -> bytes:
    """Sequence and picture parameter set: main profile, fields or frames, CAVLC."""
    sequence = Bits()
    sequence.u(24, 77 << 16 | 30)
    sequence.ue(0, 0, 0, 4, 1)  # id, frame_num of 4 bits, order counts of 8 bits, one reference frame
    sequence.u(1, 0)
    sequence.ue(SIDE_PX // MB_PX - 1, SIDE_PX // MB_PX // 2 - 1)
    # frame_mbs_only_flag 0, mb_adaptive 0, direct_8x8_inference 1, no cropping, no vui
    sequence.u(5, 0b00100)
    picture = Bits()
    picture.ue(0, 0)
    picture.u(2, 0)
    picture.ue(0, 0, 0)
    picture.u(3, 0)
    picture.ue(0, 0, 0)  # se(0) is written as ue(0)
    picture.u(3, 0b100)  # deblocking_filter_control_present_flag
    return sequence.unit(7, 3) + picture.unit(8, 3)


def field_unit(lines: np.ndarray, frame: int, is_bottom: bool) -> bytes:
    """One slice of one field: uint8 luma [32, 64], grey in colour."""
    bits = Bits()
    bits.ue(0, 7, 0)
    bits.u(4, 0)
    bits.u(2, 0b10 | is_bottom)
    if not is_bottom:
        bits.ue(frame % 2)
    bits.u(8, int(is_bottom))
    bits.u(1 if is_bottom else 2, 0)
    bits.ue(0, 1)
    for row in range(0, SIDE_PX // 2, MB_PX):
        for column in range(0, SIDE_PX, MB_PX):
            bits.ue(25)
            bits.align()
            luma = lines[row : row + MB_PX, column : column + MB_PX].tobytes()
            chroma = bytes([128] * (MB_PX * MB_PX // 2))
            bits.text += "".join(f"{byte:08b}" for byte in luma + chroma)
    return bits.unit(1 if is_bottom else 5, 1)


def fields(num_frames: int, fps: int) -> Iterator[bytes]:
    """The packets of a film whose frames show their own time."""
    delimiter = b"\0\0\0\1\x09\x10"  # access_unit_delimiter
    for frame in range(num_frames):
        luma = card(frame / fps, SIDE_PX, SIDE_PX)[:, :, 0]
        yield delimiter + headers() + field_unit(luma[::2], frame, is_bottom=False)
        yield delimiter + field_unit(luma[1::2], frame, is_bottom=True)


def field_film(path: Path, num_frames: int, fps: int = 25) -> None:
    """Writes the film, with the noise of `tests.fakes.media` as its sound."""
    stream = path.with_suffix(".h264")
    sound = path.with_suffix(".wav")
    stream.write_bytes(b"".join(fields(num_frames, fps)))
    soundfile.write(sound, NOISE[: num_frames * RATE_HZ // fps], RATE_HZ)
    picture = ["-fflags", "+genpts", "-r", str(2 * fps), "-f", "h264", "-i", str(stream)]
    ffmpeg(*picture, "-i", str(sound), "-c:v", "copy", "-c:a", "ac3", "-ar", "48000", str(path))
