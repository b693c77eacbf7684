"""Damaged and hostile inputs of many kinds, made from a seed: python tests/fuzz_inputs.py --seed 1 --count 300

Not collected by pytest. Every input goes to a child process of its own (forked, so that imports are paid for once) with limits on time and memory, in a folder of its own
that is compared before and after. What is counted for each kind:

    refused   a line was said and the exit code is not 0            same      exit code 0 and the right answer, byte for byte
    noted     exit code 0, another answer, and a line about it      look      exit code 0, another answer, nothing said: damage that leaves no trace (a flipped
                                                                              bit of an uncompressed scan) or a silent fault; listed for a look
    fault     a traceback, death by a signal, more than --limit seconds of work, more than --memory GB, or a file written outside of the output folder

The exit code is 1 if there was a fault, or a `look` of a kind that carries a checksum (marked *).
"""

import argparse
import collections
import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(name, '1')
os.environ['CUDA_VISIBLE_DEVICES'] = ''
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel as nib
import numpy as np
import tifffile
import torch
from PIL import Image
import small_model
from small_model import TINY

torch.set_num_threads(1)


@dataclass
class Case:
    "One input: what to run in its folder, where it may write, and what the right answer would be."

    run: object  # words for `xmodal`, or a function without arguments
    answer: str = ''  # digest of the right answer; '': there is none to compare with
    out: str = 'out'  # what may be written
    about: str = ''


@dataclass
class Seen:
    "What came of it."

    kind: str
    number: int
    verdict: str
    why: str
    said: str = ''
    seconds: float = 0.0
    memory: float = 0.0  # GB
    about: str = ''


# ---- right inputs, made once

VOLUME = dict(small_model.VOLUME, dataset='fuzz', options={})
IMAGE = dict(
    VOLUME,
    kind='image',
    spacing=None,
    source_window='dtype',
    target_window=[0.0, 255.0],
    target_dtype='uint8',
)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        y = torch.sin(torch.arange(64.0).reshape(1, 8, 8) * (i + 1) / 9)
        return dict(y=y, x0=-y, i=i)


def continue_training(out, resume=True):
    from xmodal.training import loop as train
    from xmodal.nets.build import build

    torch.manual_seed(0)
    train.train(
        build(**TINY),
        Pairs(),
        out,
        'cdtsde',
        train.Recipe(steps=3, batch=2, ema=0.9),
        TINY,
        device='cpu',
        log_every=1,
        progress=False,
        resume=resume,
    )


def smooth(seed, *shape):
    from scipy.ndimage import gaussian_filter

    v = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (v - v.min()) / np.ptp(v)


def make_good(root):
    "Models, a scan, a picture, a run, a DICOM series: what the damage is done to."
    from xmodal.nets.build import build
    from xmodal.training.model_folder import save_model

    torch.manual_seed(0)
    for name, data in (('volume', VOLUME), ('image', IMAGE)):
        save_model(root / name, build(**TINY), TINY, data)
    img = nib.Nifti1Image((smooth(0, 14, 16, 6) * 900).astype(np.int16), np.diag([3.0, 3, 4, 1]))
    img.set_sform(img.affine, 1)
    for end in ('.nii', '.nii.gz'):
        nib.save(img, root / f'scan{end}')
    grey = (smooth(1, 40, 36) * 255).astype(np.uint8)
    Image.fromarray(grey).save(root / 'pic.png')
    tifffile.imwrite(root / 'pic.tif', grey, compression='zlib')
    with contextlib.redirect_stdout(io.StringIO()):
        continue_training(root / 'run', resume=False)
    make_series(root / 'dicom')


def make_series(folder):
    "A DICOM series of five slices, if pydicom is there."
    try:
        import pydicom
    except ImportError:
        return
    from pydicom.dataset import Dataset, FileMetaDataset

    folder.mkdir()
    vol = (smooth(2, 5, 16, 14) * 900).astype(np.int16)
    for k, pixels in enumerate(vol):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = pydicom.uid.CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = f'1.2.3.{k + 1}'
        d.SeriesInstanceUID, d.Rows, d.Columns, d.PixelSpacing, d.SliceThickness = (
            '1.2.3',
            16,
            14,
            [3.0, 3.0],
            4.0,
        )
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, 'MONOCHROME2'
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
        d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, 4.0 * k]
        d.RescaleSlope, d.RescaleIntercept, d.PixelData = 1, 0, pixels.tobytes()
        d.save_as(folder / f'{k}.dcm', enforce_file_format=True)


# ---- damage


def pick(rng, some):
    return some[int(rng.integers(len(some)))]


def damage(rng, raw: bytes) -> bytes:
    "Any damage that a disk, a cable or a person may do to bytes."
    b, n = bytearray(raw), max(1, len(raw))
    way = int(rng.integers(7))
    if way == 0:
        return bytes(b[: int(rng.integers(0, n))])
    if way in (1, 2):
        for at in rng.integers(0, n, 1 if way == 1 else 20):
            b[int(at) % n] ^= 1 << int(rng.integers(8))
    at, size = int(rng.integers(0, n)), int(rng.integers(1, max(2, n // 4)))
    if way == 3:
        b[at : at + size] = bytes(len(b[at : at + size]))
    if way == 4:
        b[at:at] = rng.bytes(size)
    if way == 5:
        b[at : at + size] = b''
    if way == 6:
        b[at : at + size] = b[: len(b[at : at + size])]
    return bytes(b)


NUMBERS = (
    0,
    -1,
    1,
    2,
    1.5,
    -0.5,
    10**9,
    -(10**9),
    2**31 - 1,
    2**63,
    1e30,
    1e-30,
    float('nan'),
    float('inf'),
    float('-inf'),
    True,
    None,
)
VALUES = (
    *NUMBERS,
    '',
    'x',
    '1',
    '0:1',
    '9:1',
    'nan',
    'markov',
    'image',
    '../x',
    '\u0000',
    'ü\n',
    'y' * 5000,
    [],
    [1],
    [1, 2],
    [2, 1],
    [[1]],
    ['a', 'b'],
    [1] * 300,
    {},
    {'a': 1},
    {'mean': [1, 2]},
)


def places(tree, at=()):
    "Every place in a tree of dicts and lists."
    yield at
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for k, v in items:
        yield from places(v, (*at, k))


def edit(rng, tree):
    "A tree of JSON with one thing changed: (the tree, what was done)."
    tree = json.loads(json.dumps(tree))
    *above, last = pick(rng, [p for p in places(tree) if p])
    here = tree
    for k in above:
        here = here[k]
    if rng.random() < 0.15:
        del here[last]
        return tree, f'{(*above, last)} deleted'
    here[last] = pick(rng, VALUES)
    return tree, f'{(*above, last)} = {str(here[last])[:40]!r}'


def nasty_json(rng, tree) -> tuple:
    "Bytes of a JSON file that is wrong somehow, and what was done."
    way = int(rng.integers(6))
    if way < 3:
        new, about = edit(rng, tree)
        return json.dumps(new).encode(), about
    if way == 3:
        return damage(rng, json.dumps(tree).encode()), 'bytes'
    return (
        pick(
            rng,
            [
                b'',
                b'[]',
                b'null',
                b'"x"',
                b'{',
                b'\xff\xfe{}',
                b'[' * 200_000,
                b'{"a": ' + b'9' * 5000 + b'}',
                b'{"EchoTime": 1e999}',
                b'{"a": NaN}',
                b'{"a": 1, "a": 2}',
                b'5',
            ],
        ),
        'text',
    )


def chunk(kind, content):
    return (
        struct.pack('>I', len(content))
        + kind
        + content
        + struct.pack('>I', zlib.crc32(kind + content))
    )


def png(rng, good: bytes) -> tuple:
    "A PNG with a chunk changed and its checksum right again, and what was done."
    at, chunks = 8, []
    while at < len(good):
        n = struct.unpack('>I', good[at : at + 4])[0]
        chunks.append((good[at + 4 : at + 8], good[at + 8 : at + 8 + n]))
        at += 12 + n
    way = pick(
        rng, ['size', 'depth', 'data', 'text', 'profile', 'palette', 'order', 'twice', 'animation']
    )
    k = next(
        i
        for i, c in enumerate(chunks)
        if c[0] == (b'IHDR' if way in ('size', 'depth') else b'IDAT')
    )
    kind, content = chunks[k]
    b = bytearray(content)
    if way == 'size':
        b[:8] = struct.pack(
            '>II', *[int(v) for v in rng.choice([0, 1, 35, 37, 40, 65536, 2**31 - 1, 20000], 2)]
        )
    if way == 'depth':
        b[8 + int(rng.integers(5))] = int(rng.choice([0, 1, 2, 3, 4, 6, 16, 255]))
    if way == 'data':
        b = bytearray(zlib.compress(damage(rng, zlib.decompress(content))))
    chunks[k] = (kind, bytes(b))
    if way == 'text':
        chunks.insert(1, (b'zTXt', b'k\0\0' + zlib.compress(bytes(10**8))))
    if way == 'profile':
        chunks.insert(1, (b'iCCP', b'k\0\0' + zlib.compress(bytes(10**8))))
    if way == 'palette':
        chunks.insert(1, (b'PLTE', bytes(3)))
    if way == 'order':
        chunks.reverse()
    if way == 'twice':
        chunks.insert(k, chunks[k])
    if way == 'animation':
        chunks.insert(1, (b'acTL', struct.pack('>II', 2**31 - 1, 0)))
    return good[:8] + b''.join(chunk(*c) for c in chunks), way


def tiff(rng, good: bytes) -> tuple:
    "A TIFF with an entry of its table changed, and what was done."
    b = bytearray(good)
    at = struct.unpack('<I', b[4:8])[0]
    n = struct.unpack('<H', b[at : at + 2])[0]
    if rng.random() < 0.15:
        b[at + 2 + 12 * n : at + 6 + 12 * n] = struct.pack(
            '<I', pick(rng, [at, 8, 2**32 - 1, len(b)])
        )
        return bytes(b), 'the next table'
    entry = at + 2 + 12 * int(rng.integers(n))
    what = pick(rng, ['tag', 'type', 'count', 'value'])
    where, size = dict(tag=(0, 2), type=(2, 2), count=(4, 4), value=(8, 4))[what]
    value = int(pick(rng, [0, 1, 2, 3, 5, 8, 16, 255, 65535, 2**31, 2**32 - 1])) % 256**size
    tag = struct.unpack('<H', b[entry : entry + 2])[0]
    b[entry + where : entry + where + size] = value.to_bytes(size, 'little')
    return bytes(b), f'{what} of tag {tag} = {value}'


FIELDS = dict(
    sizeof_hdr=(0, '<i'),
    dim0=(40, '<h'),
    dim1=(42, '<h'),
    dim2=(44, '<h'),
    dim3=(46, '<h'),
    dim4=(48, '<h'),
    dim5=(50, '<h'),
    datatype=(70, '<h'),
    bitpix=(72, '<h'),
    pixdim0=(76, '<f'),
    pixdim1=(80, '<f'),
    pixdim3=(88, '<f'),
    vox_offset=(108, '<f'),
    scl_slope=(112, '<f'),
    scl_inter=(116, '<f'),
    xyzt_units=(123, '<b'),
    qform_code=(252, '<h'),
    sform_code=(254, '<h'),
    quatern_b=(256, '<f'),
    qoffset_x=(268, '<f'),
    srow_x=(280, '<f'),
    srow_xw=(292, '<f'),
    srow_z=(320, '<f'),
    magic=(344, '<i'),
    extension=(348, '<i'),
)


def header(rng, good: bytes) -> tuple:
    "A NIfTI file with one or two fields of its header changed, and what was done."
    b, about = bytearray(good), []
    for name in rng.choice(list(FIELDS), int(rng.integers(1, 3)), replace=False):
        at, kind = FIELDS[name]
        v = pick(
            rng,
            [
                0,
                1,
                -1,
                2,
                3,
                4,
                5,
                7,
                8,
                16,
                64,
                127,
                99,
                1000,
                32767,
                -32768,
                1e30,
                -1e30,
                1e-30,
                1e-44,
                3e38,
                float('nan'),
                float('inf'),
            ],
        )
        if kind != '<f':
            v = int(
                np.clip(
                    0 if v != v else v,
                    *dict(b=(-128, 127), h=(-(2**15), 2**15 - 1), i=(-(2**31), 2**31 - 1))[kind[1]],
                )
            )
        b[at : at + struct.calcsize(kind)] = struct.pack(kind, v)
        about.append(f'{name} = {v:g}')
    return bytes(b), ', '.join(about)


def table(rng, sep, good: str) -> tuple:
    "A table of text that is wrong somehow."
    lines = [l.split(sep) for l in good.splitlines()]
    way = pick(
        rng,
        [
            'trailing',
            'short',
            'quote',
            'bom',
            'utf16',
            'bytes',
            'wide',
            'nul',
            'empty',
            'twice',
            'crlf',
            'semicolon',
            'nothing',
            'long',
            'blank',
        ],
    )
    if way == 'trailing':
        lines = [[*l, ''] if k else l for k, l in enumerate(lines)]
    if way == 'short':
        lines[-1] = lines[-1][:1]
    if way == 'quote':
        lines[1][0] = '"' + lines[1][0]
    if way == 'long':
        lines[1][0] = 'x' * 300_000
    if way == 'wide':
        lines[0] += ['c'] * 30_000
    if way == 'twice':
        lines[0][-1] = lines[0][0]
    if way == 'blank':
        lines[1] = [' ' + v for v in lines[1]]
    if way == 'empty':
        lines = lines[:1]
    text = '\n'.join((';' if way == 'semicolon' else sep).join(l) for l in lines) + '\n'
    raw = text.encode('utf-16' if way == 'utf16' else 'utf-8')
    raw = dict(
        bom=b'\xef\xbb\xbf' + raw,
        bytes=damage(rng, raw),
        nul=raw.replace(b'1', b'\0', 1),
        crlf=raw.replace(b'\n', b'\r\n'),
        nothing=b'',
    ).get(way, raw)
    return raw, way


# ---- kinds: (rng, folder of the case, folder of good things, right answers) -> Case

# SEALED: carry a checksum, so that another answer without a word is a fault
KINDS, SEALED = {}, set()


def kind(f=None, sealed=False):
    if f is None:
        return lambda g: kind(g, sealed)
    KINDS[f.__name__] = f
    if sealed:
        SEALED.add(f.__name__)
    return f


def translate(model, source='in', *more):
    return ['translate', str(model), source, 'out', '--steps', '1', '--device', 'cpu', *more]


def put(folder, name, content: bytes):
    path = folder / 'in' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@kind
def nifti_header(rng, d, good, right):
    raw, about = header(rng, (good / 'scan.nii').read_bytes())
    packed = rng.random() < 0.5
    put(d, 'scan.nii' + '.gz' * packed, gzip.compress(raw, 1) if packed else raw)
    return Case(translate(good / 'volume'), right['scan'], about=about)


@kind
def nifti_bytes(rng, d, good, right):
    put(d, 'scan.nii', damage(rng, (good / 'scan.nii').read_bytes()))
    return Case(translate(good / 'volume'), right['scan'])


@kind(sealed=True)
def gz_bytes(rng, d, good, right):
    put(d, 'scan.nii.gz', damage(rng, (good / 'scan.nii.gz').read_bytes()))
    return Case(translate(good / 'volume'), right['scan'])


@kind
def gz_bomb(rng, d, good, right):
    raw = bytearray((good / 'scan.nii').read_bytes())
    way, piece = int(rng.integers(4)), gzip.compress(bytes(2**24), 9)
    shape = rng.integers(8, 12, 3) if way < 2 else rng.integers(200, 1800, 3)
    raw[40:56] = struct.pack('<8h', 3, *map(int, shape), 1, 1, 1, 1)
    if way == 1:
        raw[108:112] = struct.pack('<f', float(10 ** int(rng.integers(4, 10))))
    raw[70:74] = struct.pack('<hh', *pick(rng, [(2, 8), (4, 16), (16, 32), (64, 64)]))
    put(d, 'scan.nii.gz', gzip.compress(bytes(raw[:352])) + piece * int(rng.integers(1, 80)))
    return Case(translate(good / 'volume'), about=f'{tuple(shape)}, way {way}')


@kind
def png_chunks(rng, d, good, right):
    raw, about = png(rng, (good / 'pic.png').read_bytes())
    put(d, 'pic.png', raw)
    return Case(translate(good / 'image'), right['pic'], about=about)


@kind(sealed=True)
def png_bytes(rng, d, good, right):
    put(d, 'pic.png', damage(rng, (good / 'pic.png').read_bytes()))
    return Case(translate(good / 'image'), right['pic'])


@kind
def other_format(rng, d, good, right):
    "A file of another format under the name of one that is read."
    end, im = (
        pick(rng, ['gif', 'bmp', 'webp', 'jpeg', 'ppm', 'pdf', 'eps', 'tga', 'ico', 'pcx', 'icns']),
        Image.fromarray((smooth(3, 32, 32) * 255).astype(np.uint8)),
    )
    held = io.BytesIO()
    try:
        (im.convert('RGB') if rng.random() < 0.5 else im).save(held, end)
    except (OSError, KeyError):
        held.write(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file\n')
    name = pick(rng, ['pic.png', 'pic.tif', 'scan.nii', 'scan.nii.gz'])
    put(d, name, held.getvalue())
    return Case(
        translate(good / ('volume' if 'scan' in name else 'image')),
        'none',
        about=f'{end} as {name}',
    )


@kind
def tiff_table(rng, d, good, right):
    raw, about = tiff(rng, (good / 'pic.tif').read_bytes())
    put(d, 'pic.tif', raw)
    return Case(translate(good / 'image'), right['tif'], about=about)


@kind
def tiff_bytes(rng, d, good, right):
    put(d, 'pic.tif', damage(rng, (good / 'pic.tif').read_bytes()))
    return Case(translate(good / 'image'), right['tif'])


@kind
def picture_bomb(rng, d, good, right):
    size = int(rng.choice([4000, 9000, 12000, 20000, 40000]))
    if rng.random() < 0.5:
        pack, row = zlib.compressobj(1), bytes(size + 1)
        data = b''.join([pack.compress(row) for _ in range(min(size, 3000))] + [pack.flush()])
        put(
            d,
            'pic.png',
            b'\x89PNG\r\n\x1a\n'
            + chunk(
                b'IHDR', struct.pack('>IIBBBBB', size, size, 8, int(rng.choice([0, 2])), 0, 0, 0)
            )
            + chunk(b'IDAT', data)
            + chunk(b'IEND', b''),
        )
    else:
        strip = zlib.compress(bytes(2**28), 1)
        held = io.BytesIO()
        tifffile.imwrite(held, np.zeros((16, 16), np.uint8), compression='zlib')
        raw = bytearray(held.getvalue())
        at = struct.unpack('<I', raw[4:8])[0]
        for k in range(struct.unpack('<H', raw[at : at + 2])[0]):
            e = at + 2 + 12 * k
            tag = struct.unpack('<H', raw[e : e + 2])[0]
            new = {
                273: len(raw),
                279: len(strip),
                256: pick(rng, [16, size]),
                257: pick(rng, [16, size]),
            }.get(tag)
            if new is not None:
                raw[e + 2 : e + 12] = struct.pack('<HII', 4, 1, new)
        put(d, 'pic.tif', bytes(raw) + strip)
    return Case(translate(good / 'image'), about=f'{size}')


@kind
def sidecar(rng, d, good, right):
    content, about = nasty_json(
        rng,
        dict(
            EchoTime=0.1,
            RepetitionTime=3.0,
            MagneticFieldStrength=3,
            Manufacturer='Philips',
            Modality='MR',
            ProtocolName='T1',
        ),
    )
    put(d, 'scan.nii.gz', (good / 'scan.nii.gz').read_bytes())
    put(d, 'scan.json', content)
    return Case(translate(good / 'volume'), right['scan'], about=about)


@kind
def files_that_are_none(rng, d, good, right):
    "FIFOs, links, folders, devices and long names among good files; the good one is translated."
    put(d, 'scan.nii.gz', (good / 'scan.nii.gz').read_bytes())
    (d / 'secret').write_text('secret')
    way = pick(
        rng,
        [
            'fifo',
            'fifo sidecar',
            'loop',
            'dangling',
            'zero',
            'folder',
            'long',
            'newline',
            'bytes',
            'up',
            'mac',
            'sidecar folder',
            'sidecar loop',
            'out fifo',
            'out link',
        ],
    )
    here = d / 'in'
    if way == 'fifo':
        os.mkfifo(here / 'a.nii.gz')
    if way == 'fifo sidecar':
        os.mkfifo(here / 'scan.json')
    if way == 'loop':
        (here / 'a.nii.gz').symlink_to('a.nii.gz')
    if way == 'dangling':
        (here / 'a.nii.gz').symlink_to('nowhere.nii.gz')
    if way == 'zero':
        (here / pick(rng, ['a.nii', 'a.nii.gz', 'scan.json'])).symlink_to('/dev/zero')
    if way == 'folder':
        (here / 'a.nii.gz').mkdir()
    if way == 'long':
        (here / ('n' * 248 + '.nii')).write_bytes((good / 'scan.nii').read_bytes())
    if way == 'newline':
        (here / 'a\nb\x1b[31m.nii').write_bytes((good / 'scan.nii').read_bytes())
    if way == 'bytes':
        Path(os.fsdecode(os.fsencode(here) + b'/\xff\xfe.nii')).write_bytes(
            (good / 'scan.nii').read_bytes()
        )
    if way == 'up':
        (here / 'a.nii').symlink_to('../secret')
    if way == 'mac':
        (here / '._scan.nii.gz').write_bytes(b'\0\5\26\7junk')
    if way == 'sidecar folder':
        (here / 'scan.json').mkdir()
    if way == 'sidecar loop':
        (here / 'scan.json').symlink_to('scan.json')
    if way.startswith('out'):
        (d / 'out').mkdir()
    if way == 'out fifo':
        os.mkfifo(d / 'out' / 'scan.json')
    if way == 'out link':
        (d / 'out' / 'scan.json').symlink_to('../secret')
    return Case(
        translate(good / 'volume'),
        '' if way in ('long', 'newline', 'bytes') else right['scan'],
        about=way,
    )


@kind(sealed=True)
def config_values(rng, d, good, right):
    model = shutil.copytree(good / pick(rng, ['volume', 'image']), d / 'model')
    config = json.loads((model / 'config.json').read_text())
    part = pick(rng, ['data', 'model', None])
    if part:
        config[part], about = edit(rng, config[part])
    else:
        config, about = edit(rng, config)
    (model / 'config.json').write_text(json.dumps(config))
    volume = (
        'spacing' in config.get('data', {})
        and model
        and 'volume' in str(config.get('data', {}).get('kind'))
    )
    name = 'scan.nii.gz' if volume else 'pic.png'
    put(d, name, (good / name).read_bytes())
    return Case(translate('model'), '', about=f'{part}: {about}')


@kind
def config_bytes(rng, d, good, right):
    model = shutil.copytree(good / 'volume', d / 'model')
    raw, about = nasty_json(rng, json.loads((model / 'config.json').read_text()))
    (model / 'config.json').write_bytes(raw)
    put(d, 'scan.nii.gz', (good / 'scan.nii.gz').read_bytes())
    return Case(translate('model'), right['scan'], about=about)


@kind(sealed=True)
def weights(rng, d, good, right):
    "Bytes of the weights, with the digest (and without, as earlier versions wrote it)."
    model = shutil.copytree(good / 'volume', d / 'model')
    path, old = model / 'model.safetensors', rng.random() < 0.3
    raw = path.read_bytes()
    n = struct.unpack('<Q', raw[:8])[0]
    head = json.loads(raw[8 : 8 + n])
    if rng.random() < 0.5 or old:
        name = pick(rng, [k for k in head if k != '__metadata__'])
        head[name], about = edit(rng, head[name])
        text = json.dumps(head).encode()
        raw = (
            struct.pack('<Q', pick(rng, [len(text)] * 4 + [0, 2**40, 2**63])) + text + raw[8 + n :]
        )
    else:
        raw, about = damage(rng, raw), 'bytes'
    path.write_bytes(raw)
    if old:
        config = json.loads((model / 'config.json').read_text())
        config.pop('weights')
        (model / 'config.json').write_text(json.dumps(config))
    put(d, 'scan.nii.gz', (good / 'scan.nii.gz').read_bytes())
    return Case(translate('model'), right['scan'], about=about + ' (old)' * old)


@kind(sealed=True)
def checkpoint(rng, d, good, right):
    out = shutil.copytree(good / 'run', d / 'out')
    ckpt = next((out / 'checkpoints').iterdir())
    name = pick(
        rng,
        [
            'state.json',
            'state.json',
            'model.safetensors',
            'optim.safetensors',
            'ema.safetensors',
            'log.csv',
            'missing',
            'litter',
        ],
    )
    about = name
    if name == 'state.json':
        raw, more = nasty_json(rng, json.loads((ckpt / name).read_text()))
        (ckpt / name).write_bytes(raw)
        about += f': {more}'
    elif name == 'log.csv':
        (out / name).write_bytes(damage(rng, (out / name).read_bytes()))
    elif name == 'missing':
        pick(rng, sorted(ckpt.iterdir())).unlink()
    elif name == 'litter':
        (
            out / 'checkpoints' / pick(rng, ['step-x', 'step-', 'step-000009', 'step-9999999999'])
        ).mkdir()
    else:
        (ckpt / name).write_bytes(damage(rng, (ckpt / name).read_bytes()))
    return Case(lambda: refused(lambda: continue_training('out')), right['run'], about=about)


def refused(f) -> int:
    from xmodal.core import InputError

    try:
        f()
    except InputError as e:
        print(f'xmodal: {e}', file=sys.stderr)
        return 1
    return 0


@kind(sealed=True)
def archive(rng, d, good, right):
    "Tar and zip archives with bytes changed, or with members that have no business there."
    held, way = io.BytesIO(), pick(rng, ['bytes', 'member'])
    packed = pick(rng, ['tar', 'tar.gz', 'tar.xz', 'zip'])
    files = {f'd/{k}.nii': (good / 'scan.nii').read_bytes()[: 3000 + k] for k in range(6)}
    name, mode = (
        pick(
            rng,
            [
                '../../evil',
                '/tmp/evil-of-a-fuzz',
                'd/../../evil',
                'd/0.nii/x',
                'x' * 300,
                'a\nb',
                '..',
                'C:\\evil',
                'd\\..\\..\\evil',
                'link',
            ],
        ),
        pick(rng, [b'0', b'1', b'2', b'3', b'6', b'S', b'x', b'g', b'L', b'K']),
    )
    if packed == 'zip':
        with zipfile.ZipFile(held, 'w', zipfile.ZIP_DEFLATED) as z:
            for n, content in files.items():
                z.writestr(n, content)
            if way == 'member':
                i = zipfile.ZipInfo(name)
                i.external_attr = int(rng.choice([0o120777, 0o100644, 0o020644, 0o010644])) << 16
                z.writestr(i, b'../../secret')
        raw = held.getvalue()
    else:
        with tarfile.open(fileobj=held, mode='w') as t:
            for n, content in files.items():
                i = tarfile.TarInfo(n)
                i.size = len(content)
                t.addfile(i, io.BytesIO(content))
            if way == 'member':
                i = tarfile.TarInfo(name)
                i.type, i.linkname, i.size = mode, '../../secret', int(pick(rng, [0, 9, 2**33]))
                t.addfile(i, io.BytesIO(b'x' * i.size) if i.size == 9 else None)
        raw = held.getvalue()
        if way == 'bytes':
            raw = damage(rng, raw)
        raw = dict(
            tar=bytes,
            **{
                'tar.gz': lambda v: gzip.compress(v, 1),
                'tar.xz': lambda v: lzma.compress(v, preset=0),
            },
        )[packed](raw)
    if way == 'bytes' and (packed == 'zip' or rng.random() < 0.5):
        raw = damage(rng, raw)
    put(d, f'a.{packed}', raw)

    def run():
        from xmodal.data.cards import unpack

        return refused(lambda: unpack(f'in/a.{packed}', 'out'))

    # may be written, or not
    plain = name == 'link' and packed == 'zip' or name in ('a\nb', 'd/0.nii/x')
    return Case(
        run,
        right['archive'] if way == 'bytes' else '' if plain else 'none',
        about=f'{packed} {way} {name[:20]!r} {mode}' if way == 'member' else f'{packed} bytes',
    )


def bids(d, good):
    for k in range(1, 4):
        for what in ('T1w', 'T2w'):
            v = smooth(k, 14, 16, 6)
            img = nib.Nifti1Image(
                ((1 - v if what == 'T2w' else v) * 900).astype(np.int16), np.diag([3.0, 3, 4, 1])
            )
            img.set_sform(img.affine, 1)
            path = d / 'in' / f'sub-{k:02d}' / 'anat' / f'sub-{k:02d}_{what}.nii.gz'
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(img, path)
    (d / 'in' / 'dataset_description.json').write_text('{"Name": "fuzz", "BIDSVersion": "1.9.0"}')


@kind
def tables(rng, d, good, right):
    "participants.tsv of a BIDS data set, or a table of pairs."
    bids(d, good)
    if rng.random() < 0.5:
        raw, about = table(
            rng,
            '\t',
            'participant_id\tage\tsex\tsite\n'
            + ''.join(f'sub-{k:02d}\t{30 + k}\tM\tA\n' for k in range(1, 4)),
        )
        put(d, 'participants.tsv', raw)
        return Case(
            ['data', 'check', 'bids', '--root', 'in', '--source', 'T1w', '--target', 'T2w'],
            about=f'participants {about}',
        )
    raw, about = table(
        rng,
        ',',
        'source,target,subject,split\n'
        + ''.join(
            f'sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz,sub-{k:02d}/anat/sub-{k:02d}_T2w.nii.gz,{k},{"train" if k < 3 else "test"}\n'
            for k in range(1, 4)
        ),
    )
    put(d, 'pairs.csv', raw)
    return Case(['data', 'check', 'csv', '--root', 'in'], about=f'pairs {about}')


@kind
def sheets(rng, d, good, right):
    "Spreadsheets, damaged or with a cell far away."
    import openpyxl

    book = openpyxl.Workbook()
    for row in (('IXI_ID', 'SEX_ID (1=m, 2=f)', 'AGE'), (2, 1, 35.8), (3, 2, 40.0)):
        book.active.append(row)
    if rng.random() < 0.5:
        book.active.cell(
            row=int(rng.choice([3000, 10**6])), column=int(rng.choice([4, 300, 16384]))
        ).value = 1
    held = io.BytesIO()
    book.save(held)
    raw, end = held.getvalue(), pick(rng, ['xlsx', 'xls'])
    put(d, f'IXI.{end}', damage(rng, raw) if rng.random() < 0.5 else raw)
    for k in (2, 3):
        for what in ('T1', 'T2'):
            put(
                d,
                f'IXI-{what}/IXI{k:03d}-Guys-0828-{what}.nii.gz',
                (good / 'scan.nii.gz').read_bytes(),
            )
    return Case(['data', 'check', 'ixi', '--root', 'in'], about=end)


@kind
def bids_cohort(rng, d, good, right):
    "A BIDS data set with one damaged thing: the others are translated."
    bids(d, good)
    way = pick(rng, ['scan', 'sidecar', 'description', 'participants', 'root sidecar'])
    scan = d / 'in' / 'sub-02' / 'anat' / 'sub-02_T1w.nii.gz'
    content, _ = nasty_json(rng, dict(EchoTime=0.1, Name='x', BIDSVersion='1.9.0'))
    if way == 'scan':
        scan.write_bytes(damage(rng, scan.read_bytes()))
    if way == 'sidecar':
        put(d, 'sub-02/anat/sub-02_T1w.json', content)
    if way == 'root sidecar':
        put(d, 'T1w.json', content)
    if way == 'description':
        put(d, 'dataset_description.json', content)
    if way == 'participants':
        put(d, 'participants.tsv', damage(rng, b'participant_id\tage\nsub-01\t3\nsub-02\t4\n'))
    return Case(translate(good / 'volume', 'in', '--bids'), '', about=way)


@kind
def evaluation(rng, d, good, right):
    "A damaged translation or truth."
    end = pick(rng, ['scan.nii', 'scan.nii.gz', 'pic.png', 'pic.tif'])
    for side in ('pred', 'truth'):
        for k in range(2):
            put(d, f'{side}/{k}_{end}', (good / end).read_bytes())
    bad = d / 'in' / pick(rng, ['pred', 'truth']) / f'1_{end}'
    raw, about = (
        header(rng, bad.read_bytes())
        if end == 'scan.nii' and rng.random() < 0.6
        else (damage(rng, bad.read_bytes()), 'bytes')
    )
    bad.write_bytes(raw)
    return Case(['evaluate', 'in/pred', 'in/truth'], about=f'{bad.parent.name} {end}: {about}')


@kind
def checked_folder(rng, d, good, right):
    "Folders of pictures, one damaged, for `data check`."
    for side in 'ab':
        for k in range(4):
            put(d, f'{side}/{k}.png', (good / 'pic.png').read_bytes())
    path = d / 'in' / pick(rng, ['a', 'b']) / '2.png'
    raw, about = (
        png(rng, path.read_bytes())
        if rng.random() < 0.5
        else (damage(rng, path.read_bytes()), 'bytes')
    )
    path.write_bytes(raw)
    return Case(
        ['data', 'check', 'folder', '--root', 'in', '--source', 'a', '--target', 'b'], about=about
    )


@kind
def dicom(rng, d, good, right):
    "A series with a damaged slice, in a table of pairs."
    if not (good / 'dicom').is_dir():
        return Case(lambda: 0, about='no pydicom')
    shutil.copytree(good / 'dicom', d / 'in' / 's')
    shutil.copytree(good / 'dicom', d / 'in' / 't')
    path = pick(rng, sorted((d / 'in' / 's').iterdir()))
    path.write_bytes(damage(rng, path.read_bytes()))
    put(d, 'pairs.csv', b'source,target,subject\ns,t,a\n')
    return Case(['data', 'check', 'csv', '--root', 'in'], about='bytes')


# ---- running one


def digest(folder) -> str:
    """What the results in a folder hold: voxels and grids, pixels, bytes of other files; not when
    they were made.
    """
    h, folder = hashlib.blake2b(digest_size=8), Path(folder)
    paths = [folder] if folder.is_file() else sorted(p for p in folder.rglob('*') if p.is_file())
    for p in paths:
        if p.name.endswith(('.nii', '.nii.gz')):
            img = nib.load(p)
            h.update(
                np.asarray(img.dataobj, np.float32).tobytes()
                + np.asarray(img.affine, np.float32).tobytes()
            )
        elif p.suffix == '.png':
            h.update(np.asarray(Image.open(p, formats=['PNG'])).tobytes())
        elif p.suffix == '.tif':
            h.update(np.asarray(tifffile.imread(p)).tobytes())
        elif p.suffix == '.safetensors':
            h.update(p.read_bytes())
        elif p.suffix not in ('.json', '.csv'):
            h.update(p.name.encode() + p.read_bytes())
    return h.hexdigest() if paths else ''


def listing(folder, but) -> dict:
    "Name, size and time of everything below a folder, without `but`."
    found = {}
    for path, folders, files in os.walk(folder):
        if Path(path) == Path(folder) / but:
            folders[:] = []
        for n in [*folders, *files]:
            p = Path(path) / n
            if (Path(folder) / but) in (p, *p.parents) or n == but and Path(path) == Path(folder):
                continue
            s = p.lstat()
            found[str(p)] = (s.st_size, s.st_mtime_ns) if not p.is_dir() else 0
    return found


def child(case, folder, room):
    "In the forked process: run, and say what happened by the exit code."
    import resource

    os.chdir(folder)
    for k in ('HOME', 'TMPDIR', 'XDG_CACHE_HOME'):
        os.environ[k] = str(folder / 'home')
    (folder / 'home').mkdir(exist_ok=True)
    tempfile.tempdir = None
    out = os.open(folder.with_suffix('.said'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (
        open(1, 'w', closefd=False),
        open(2, 'w', closefd=False, errors='backslashreplace'),
    )
    held = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
    # the peak begins anew
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    code = 99
    try:
        from xmodal.cli import main

        code = main(case.run) if isinstance(case.run, list) else case.run()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 2
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        peak = next(
            (
                l.split()[1]
                for l in Path('/proc/self/status').read_text().splitlines()
                if l.startswith('VmHWM')
            ),
            '0',
        )
        folder.with_suffix('.peak').write_text(peak)
        os._exit(code or 0)


def peak_of(pid) -> float:
    "Largest memory of a process so far, GB."
    try:
        return (
            next(
                int(l.split()[1])
                for l in Path(f'/proc/{pid}/status').read_text().splitlines()
                if l.startswith('VmHWM')
            )
            / 1e6
        )
    except (OSError, StopIteration, ValueError):
        return 0.0


def seconds_of(pid) -> float:
    "Seconds that a process has worked so far."
    try:
        return sum(
            map(int, Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13])
        ) / os.sysconf('SC_CLK_TCK')
    except (OSError, ValueError):
        return 0.0


def run(case, folder, limit, memory) -> tuple:
    "Fork, wait, watch: exit code or reason, what was said, seconds, GB."
    start, peak, why = time.time(), 0.0, ''
    pid = os.fork()
    if pid == 0:
        child(case, folder, int(3 * memory * 1e9))
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, peak_of(pid))
        spent = seconds_of(pid)
        if spent > limit or time.time() - start > 5 * limit or peak > 1.5 * memory:
            why = (
                f'ran for {time.time() - start:.0f} s ({spent:.0f} s of them working)'
                if peak <= 1.5 * memory
                else f'took {peak:.1f} GB'
            )
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    said = (
        folder.with_suffix('.said').read_text(errors='replace')
        if folder.with_suffix('.said').exists()
        else ''
    )
    with contextlib.suppress(OSError, ValueError):
        peak = max(peak, int(folder.with_suffix('.peak').read_text()) / 1e6)
    code = os.waitstatus_to_exitcode(status)
    return (why or code), said, time.time() - start, peak


def judge(name, number, case, code, said, seconds, memory, outside, got, most) -> Seen:
    "The verdict."
    seen = Seen(name, number, '', '', said[-2000:], seconds, memory, case.about)
    lines = [l for l in said.splitlines() if l.strip()]
    if isinstance(code, str):
        seen.verdict, seen.why = 'fault', code
    elif 'Traceback (most recent' in said or code == 99:
        seen.verdict, seen.why = 'fault', 'traceback: ' + (lines[-1][:150] if lines else '')
    elif 'not foreseen' in said:
        seen.verdict, seen.why = (
            'fault',
            'unforeseen: ' + next(l for l in lines if 'not foreseen' in l)[:300],
        )
    elif code < 0:
        seen.verdict, seen.why = 'fault', f'died of signal {-code}'
    elif memory > most:
        seen.verdict, seen.why = 'fault', f'took {memory:.2f} GB'
    elif outside:
        seen.verdict, seen.why = 'fault', f'wrote {outside[:3]}'
    elif code:
        seen.verdict, seen.why = (
            ('refused', lines[-1][:200]) if lines else ('fault', 'failed without a word')
        )
    elif not case.answer:
        seen.verdict = 'noted' if lines else 'same'
    elif got == case.answer:
        seen.verdict = 'same'
    else:
        seen.verdict, seen.why = (
            (
                'noted'
                if any('note:' in l or 'left out' in l or 'not translated' in l for l in lines)
                else 'look'
            ),
            f'answer {got or "nothing"} instead of {case.answer}',
        )
    return seen


def right_answers(good, root) -> dict:
    "What undamaged inputs give."
    right = {}
    for key, name, model in (
        ('scan', 'scan.nii.gz', 'volume'),
        ('pic', 'pic.png', 'image'),
        ('tif', 'pic.tif', 'image'),
    ):
        d = root / f'right-{key}'
        put(d, name, (good / name).read_bytes())
        code, said, *_ = run(Case(translate(good / model)), d, 300, 4.0)
        assert code == 0, f'the undamaged {name} was not translated: {code} {said[-2000:]}'
        right[key] = digest(d / 'out')
    right['run'] = digest(good / 'run')
    d = root / 'right-archive'
    for k in range(6):
        put(d, f'd/{k}.nii', (good / 'scan.nii').read_bytes()[: 3000 + k])
    h = hashlib.blake2b(digest_size=8)
    right['archive'] = raw_digest(d / 'in')
    return right


def raw_digest(folder) -> str:
    "Names and bytes of all files."
    h = hashlib.blake2b(digest_size=8)
    for p in sorted(q for q in Path(folder).rglob('*') if q.is_file()):
        h.update(str(p.relative_to(folder)).encode() + p.read_bytes())
    return h.hexdigest()


def answer_of(name, folder, case) -> str:
    """The digest of what a case gave; '' where there is nothing, 'unreadable' where it cannot be
    read.
    """
    if not (folder / case.out).exists():
        return ''
    try:
        return raw_digest(folder / case.out) if name == 'archive' else digest(folder / case.out)
    except Exception as e:
        return f'unreadable ({type(e).__name__})'


def prepare_case(name, seed, number, root, good, right) -> tuple:
    """The folder of an input and the case; the same for the same seed and number, whatever else
    runs.
    """
    folder = root / f'{number:05d}-{name}'
    folder.mkdir()
    rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
    return folder, KINDS[name](rng, folder, good, right)


def tell(found, seed, keep):
    "The table of counts and the lists."
    counts = collections.defaultdict(collections.Counter)
    for s in found:
        counts[s.kind][s.verdict] += 1
    print(
        f'\n{"kind":22s}'
        + ''.join(f'{v:>9s}' for v in ('refused', 'noted', 'same', 'look', 'fault'))
        + f'{"max s":>9s}{"max GB":>9s}'
    )
    for k in sorted(counts):
        mine = [s for s in found if s.kind == k]
        print(
            f'{k + "*" * (k in SEALED):22s}'
            + ''.join(f'{counts[k][v]:9d}' for v in ('refused', 'noted', 'same', 'look', 'fault'))
            + f'{max(s.seconds for s in mine):9.1f}{max(s.memory for s in mine):9.2f}'
        )
    for verdict, words in (('fault', 'FAULTS'), ('look', 'ANOTHER ANSWER AND NOTHING SAID: look')):
        some = [s for s in found if s.verdict == verdict]
        if some:
            print(f'\n{words}')
        for s in some:
            print(
                f'  --seed {seed} --only {s.kind} --number {s.number}  [{s.about}]\n      {s.why}'
            )
    print(
        f'\n{len(found)} inputs of {len(counts)} kinds; seed {seed}; kept in {keep}'
        if keep
        else f'\n{len(found)} inputs of {len(counts)} kinds; seed {seed}'
    )


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--count', type=int, default=100, help='how many inputs, spread over the kinds')
    p.add_argument('--only', default='', help='kinds, separated by commas')
    p.add_argument(
        '--number', type=int, default=None, help='one input again, and print what was said'
    )
    p.add_argument(
        '--limit', type=float, default=60, help='seconds of work (of waiting: five times as many)'
    )
    p.add_argument('--memory', type=float, default=2.0, help='GB')
    p.add_argument('--keep', default='', help='folder in which faults and looks are kept')
    p.add_argument('--csv', default='', help='file for one row per input')
    a = p.parse_args()
    kinds = [k for k in KINDS if not a.only or k in a.only.split(',')]
    if not kinds:
        p.error(f'kinds are {", ".join(KINDS)}')
    # paid for once
    import xmodal.cli
    import xmodal.data.cards
    import xmodal.data.check
    import xmodal.evaluation.cohort
    import xmodal.folders
    import xmodal.training.loop

    root = Path(tempfile.mkdtemp(prefix='fuzz-'))
    good = root / 'good'
    good.mkdir()
    make_good(good)
    right, found = right_answers(good, root), []
    cases = (
        [(kinds[n % len(kinds)], n) for n in range(a.count)]
        if a.number is None
        else [(kinds[0], a.number)]
    )
    around = listing(root, 'x')
    for name, number in cases:
        folder, case = prepare_case(name, a.seed, number, root, good, right)
        before = listing(folder, case.out)
        code, said, seconds, memory = run(case, folder, a.limit, a.memory)
        after = {k: v for k, v in listing(folder, case.out).items() if f'{folder}/home' not in k}
        outside = [k for k in after if after[k] != before.get(k)] + [
            k for k in before if k not in after
        ]
        mine = str(folder)
        now = (
            {k: v for k, v in listing(root, 'x').items() if not k.startswith(mine)}
            if number % 20 == 0 or a.number is not None
            else around
        )
        outside += [k for k in now if now[k] != around.get(k)] + [
            f for f in ('/tmp/evil-of-a-fuzz',) if Path(f).exists()
        ]
        got = answer_of(name, folder, case) if code == 0 else ''
        found.append(judge(name, number, case, code, said, seconds, memory, outside, got, a.memory))
        if a.number is not None:
            print(f'{folder}\n{case.run}\n{said}\n{found[-1].verdict}: {found[-1].why}')
        if a.keep and found[-1].verdict in ('fault', 'look'):
            Path(a.keep).mkdir(parents=True, exist_ok=True)
            shutil.move(folder, Path(a.keep) / f'seed{a.seed}-{folder.name}')
            (Path(a.keep) / f'seed{a.seed}-{folder.name}.txt').write_text(
                f'{found[-1].about}\n{found[-1].why}\n{said}'
            )
        elif a.number is None:
            shutil.rmtree(folder, ignore_errors=True)
        for end in ('.said', '.peak'):
            folder.with_suffix(end).unlink(missing_ok=True)
        if len(found) % 25 == 0:
            print(f'{len(found)} of {len(cases)}', file=sys.stderr, flush=True)
    tell(found, a.seed, a.keep)
    if a.csv:
        with open(a.csv, 'w', newline='', encoding='utf-8') as f:
            rows = csv.writer(f)
            rows.writerow(['kind', 'number', 'verdict', 'why', 'about', 'seconds', 'gb'])
            for s in found:
                rows.writerow(
                    [
                        s.kind,
                        s.number,
                        s.verdict,
                        s.why,
                        s.about,
                        f'{s.seconds:.2f}',
                        f'{s.memory:.2f}',
                    ]
                )
    if a.number is None:
        shutil.rmtree(root, ignore_errors=True)
    return int(any(s.verdict == 'fault' or s.verdict == 'look' and s.kind in SEALED for s in found))


if __name__ == '__main__':
    sys.exit(main())
