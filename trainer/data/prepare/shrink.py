"""Making large images smaller once, instead of decoding them whole in every epoch."""

from __future__ import annotations

import io

from PIL import Image

_QUALITY = 95
_KEPT_MODES = ("RGB", "L")


def shrink(content: bytes, extension: str, max_side: int) -> bytes:
    """Resize so that the longer side has `max_side` pixels; antialiased, in the format of the extension.

    Args:
        content: an image that can be decoded.
        extension: with its dot, in small letters.
        max_side: pixels.

    Returns:
        The new file: JPEG (and WebP) of quality 95; colours other than RGB and grayscale become RGB.
    """
    with Image.open(io.BytesIO(content)) as image:
        pixels = image if image.mode in _KEPT_MODES else image.convert("RGB")
        longer = max(image.size)
        width, height = (max(round(side * max_side / longer), 1) for side in image.size)
        out = io.BytesIO()
        smaller = pixels.resize((width, height), Image.Resampling.LANCZOS)
        smaller.save(out, format=Image.registered_extensions()[extension], quality=_QUALITY)
        return out.getvalue()
