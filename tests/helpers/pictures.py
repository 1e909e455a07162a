"""Picture files that Pillow can't write: PNG of 16 bits a channel or 4 bits, TIFF with any bits, and LMDBs."""
import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture(height=40, width=60, seed=0):
    """A smooth random picture: uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(array, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def half(path):
    """Cut a file short: its header stays good."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def png(array, clear=None, bits=None):
    """uint8 or uint16 [H, W] or [H, W, C], C 1 to 4. `clear`: the value, or three, that is transparent (tRNS). `bits`
    4: of uint8 < 16."""
    height, width, *channels = array.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels[0] if channels else 1]
    depth = bits or array.dtype.itemsize * 8
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1)
    if depth == 4:
        rows = rows[:, ::2] << 4 | rows[:, 1::2]
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if clear is not None:
        parts.append(chunk(b"tRNS", struct.pack(f">{np.size(clear)}H", *np.ravel(clear).tolist())))
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(array, bits=None, data=None, white_is_zero=False, tags=()):
    """Numbers [H, W] or [H, W, 3] as one strip; `data`: its bytes, if they are packed to `bits`. `tags`: (number,
    float) pairs."""
    order = ">" if array.dtype.byteorder == ">" else "<"
    height, width, *channels = array.shape
    count, data = (channels[0] if channels else 1), array.tobytes() if data is None else data
    bits, kind = bits or array.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    numbers = [(256, [width]), (257, [height]), (258, [bits] * count), (259, [1]),
               (262, [2 if count == 3 else 0 if white_is_zero else 1]),
               (273, [8]), (277, [count]), (278, [height]), (279, [len(data)]), (339, [kind] * count)]
    entries = [(tag, "I" if tag in (273, 279) else "H", values) for tag, values in numbers]
    entries = sorted(entries + [(tag, "d", [value]) for tag, value in tags])
    start, kinds = 8 + len(data) + 2 + 12 * len(entries) + 4, {"H": 3, "I": 4, "d": 12}
    table, more = b"", b""
    for tag, code, values in entries:
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, more = struct.pack(f"{order}I", start + len(more)), more + packed
        table += struct.pack(f"{order}HHI", tag, kinds[code], len(values)) + packed.ljust(4, b"\0")
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(entries)) + table + struct.pack(f"{order}I", 0) + more


def write_lmdb(path, items, length):
    import lmdb

    env = lmdb.open(str(path), map_size=2**26)
    with env.begin(write=True) as transaction:
        for key, value in items.items():
            transaction.put(key.encode(), value)
        if length is not None:
            transaction.put(b"length", str(length).encode())
    env.close()
    return path
