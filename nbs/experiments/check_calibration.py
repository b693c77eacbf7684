"""`xmodal data check` on real data: false alarms, planted faults, and thresholds that leave one set out.

    python nbs/experiments/check_calibration.py [FOLDER OF THE REAL SETS] [SET ...]

Writes results/check_calibration.csv (a row per set) and results/check_thresholds.csv (a row per set left out).
Every set is read and looked at once. Faults are planted into what was looked at: 5 % of the pairs, at least one,
are shifted by 5 and by 13 of 64 pixels, mirrored, turned upside down, exchanged in their roles, given the target of another subject,
or filed a second time, with noise, under another subject, which leaks into the test set.
Expected are the pairs as they lie in the public sets, all of which were registered or cut from one image by their
authors; a finding that is an error there is a false alarm."""

import copy
import csv
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from xmodal.core import project_root
from xmodal.data import check as C
from xmodal.data.volumes import split_records
from xmodal.data.layouts import find_records

HERE = Path(__file__).parent
CELLS = dict(
    dataset='folder', source='image', target='mask', group='^([^_]+)_', target_window='labels:0:4'
)
SETS = {
    'brain T1w-T2w': dict(dataset='bids', at='brain'),
    'brain T1w-FLAIR': dict(dataset='bids', at='brain', target='FLAIR'),
    'lgg T1w-FLAIR': dict(dataset='bids', at='lgg', target='FLAIR'),
    'lgg T1w-ce': dict(dataset='bids', at='lgg', target='ce-gadolinium_T1w'),
    'glioma T1w-T2w': dict(dataset='bids', at='glioma'),
    'glioma T1w-FLAIR': dict(dataset='bids', at='glioma', target='FLAIR'),
    'brats_crops t1-t2': dict(
        dataset='folder', at='brats_crops', source='t1', target='t2', group='^([^_]+)_', size=32
    ),
    'head_mr_ct': dict(
        dataset='folder', at='head_mr_ct', source='mr', target='ct', group='^([^_]+)_'
    ),
    'sar_optical': dict(dataset='folder', at='sar_optical', source='s1', target='s2'),
    'sen12': dict(dataset='sentinel', at='sen12'),
    'el': dict(CELLS, at='el'),
    'el_fsec': dict(CELLS, at='el_fsec'),
}


def looked_at(name, real):
    "The report of a set, its split, and the seconds that it took."
    ask = {k: v for k, v in SETS[name].items() if k != 'at'}
    root = real / SETS[name]['at']
    records = find_records(
        ask['dataset'], root, ask.get('source'), ask.get('target'), ask.get('group')
    )
    if name == 'sar_optical':  # the unit is the place, found by matching borders
        with open(root / 'events.csv', encoding='utf-8') as f:
            places = {row['name']: row['place'] for row in csv.DictReader(f)}
        records = [replace(r, subject=places[r.name]) for r in records]
    start = time.time()
    report = C.check(root=root, records=records, progress=False, **ask)
    return report, split_records(records), time.time() - start


def chosen(looked, share=0.05):
    "Numbers of the pairs that get a fault."
    rng = np.random.default_rng(7)
    return rng.permutation(len(looked))[: max(1, round(share * len(looked)))]


def altered(d, **new):
    "The facts of a pair with other pictures, and their prints made again."
    d = dict(d, **new)
    sides = list(zip(d['y'], d['x0']))
    d['prints'] = [tuple(map(C.small_picture, v)) for v in sides]
    d['fine'] = [tuple(map(C.fine_picture, v)) for v in sides]
    return d


def shifted(looked, k, split, pixels=5):
    n = pixels * looked[k]['x0'].shape[-1] // 64
    looked[k] = altered(looked[k], x0=np.roll(looked[k]['x0'], n, -2))


def far(looked, k, split):
    shifted(looked, k, split, 13)


def mirrored(looked, k, split):
    looked[k] = altered(looked[k], x0=np.ascontiguousarray(looked[k]['x0'][..., ::-1]))


def upside_down(looked, k, split):
    looked[k] = altered(looked[k], x0=np.ascontiguousarray(looked[k]['x0'][..., ::-1, :]))


def roles(looked, k, split):
    d = looked[k]
    looked[k] = altered(
        d, y=d['x0'], x0=d['y'], r=replace(d['r'], source=d['r'].target, target=d['r'].source)
    )


def swapped(looked, k, split):
    "The targets of this pair and of the next one of another subject change places."
    fits = [
        i
        for i, d in enumerate(looked)
        if d['r'].subject != looked[k]['r'].subject and d['x0'].shape == looked[k]['x0'].shape
    ]
    j = min(fits, key=lambda i: (i - k) % len(looked))
    a, b = looked[k], looked[j]
    looked[k] = altered(a, x0=b['x0'], r=replace(a['r'], target=b['r'].target))
    looked[j] = altered(b, x0=a['x0'], r=replace(b['r'], target=a['r'].target))


def leaked(looked, k, split):
    "The pair once more under another subject, with noise, another gain and offset."
    rng = np.random.default_rng(int(k))
    d, side = looked[k], {s: n for n, names in split.items() for s in names}
    other = next(s for s in side if side[s] != side[d['r'].subject])
    noisy = 0.9 * d['y'] + 0.05 + 0.02 * rng.standard_normal(d['y'].shape)
    looked.append(
        altered(
            d,
            y=noisy.astype(np.float32),
            r=replace(d['r'], subject=other, name=f'{d["r"].name}-copy'),
        )
    )


FAULTS = {
    shifted: ('shift', 'misfit'),
    far: ('shift', 'misfit', 'swapped'),
    mirrored: ('flip',),
    upside_down: ('flip', 'misfit'),
    roles: ('exchanged',),
    swapped: ('swapped', 'misfit', 'shift', 'flip'),
    leaked: ('duplicate',),
}


def judged(looked, split, p, exchanged):
    "The findings that concern pairs, of facts that may have been altered."
    report = C.Report('')
    C.find_misplaced(looked, report)
    # reads volumes again, so only where it matters
    if exchanged:
        C.find_exchanged(looked, report, p)
    C.find_roles(looked, report)
    C.find_copies(looked, report, split)
    return report


def count(name, report, split):
    """A row of the table: false alarms of a set, and of each fault how many were named (as errors,
    as warnings).
    """
    looked, p = report.looked, dict(spacing=None, size=64)
    if not C.is_image(looked[0]['r'].source):
        p['spacing'] = C.default_spacing([d['r'] for d in looked], 64)
    row = dict(
        set=name,
        pairs=len(looked),
        subjects=len({d['r'].subject for d in looked}),
        strength=round(report.strength, 2),
        errors=len(report.errors),
        warnings=len(report.findings) - len(report.errors),
        kinds=' '.join(sorted({f.what for f in report.findings})),
    )
    old = {(f.what, f.text) for f in report.findings}
    for fault, names in FAULTS.items():
        some, ill = chosen(looked), list(looked)
        who = [looked[k]['r'].name for k in some]
        for k in some:
            fault(ill, int(k), split)
        new = [
            f
            for f in judged(ill, split, p, fault is swapped).findings
            if f.what in names and (f.what, f.text) not in old
        ]

        def named(level, n):
            return any(
                f.level == level and re.search(rf'(?<![\w-]){re.escape(n)}(?![\w-])', f.text)
                for f in new
            )

        hard = sum(named('error', n) for n in who)
        soft = sum(named('warning', n) and not named('error', n) for n in who)
        row[fault.__name__] = f'{hard}+{soft}/{len(who)}'
    return row


def extremes(name, report):
    """What the thresholds have to leave alone in a set: the lowest fit of a lost pair, and how
    clear its direction is.
    """
    looked, right = report.looked, None
    found = dict(set=name, image=C.is_image(looked[0]['r'].source))
    lost = [t['misfit'] for t in report.table if 'misfit' in t]
    found['lowest'] = min(lost, default=np.nan)
    if len(looked) >= 8 and looked[0]['channels'][0] == looked[0]['channels'][1]:
        right, wrong = C.direction(looked)
        gap = right - wrong
        usual = np.median(gap)
        found['clear'] = usual / (1.4826 * np.median(np.abs(gap - usual)))
        found['accused'] = int(
            ((-gap > 0.5 * usual) & (wrong > np.percentile(right, 10)) & (usual > 0.05)).sum()
        )
    return found


def left_out(found):
    """Thresholds from all other sets (the lowest fit less one; twice the clearest set with a false
    accusation), and errors here.
    """
    rows = []
    for me in found:
        others = [f for f in found if f['set'].split()[0] != me['set'].split()[0]]
        low = np.nanmin([f['lowest'] for f in others] + [-1.0]) - 1
        clear = 2 * max([f['clear'] for f in others if f.get('accused')], default=1.0)
        wrong = int(me['image'] and me['lowest'] < low)
        roles_wrong = me.get('accused', 0) if me.get('clear', 0) > clear else 0
        rows.append(
            dict(
                left_out=me['set'],
                misfit_threshold=round(low, 2),
                lowest_here=round(me['lowest'], 2),
                misfit_errors=wrong,
                direction_threshold=round(clear, 2),
                direction_here=round(me.get('clear', np.nan), 2),
                exchanged_errors=roles_wrong,
            )
        )
    return rows


def write(path, rows):
    with open(path, 'w', newline='', encoding='utf-8') as f:
        table = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        table.writeheader()
        table.writerows(rows)


def main(real=None, *names):
    real = Path(real or project_root().parent / 'shared' / 'data')
    rows, found = [], []
    for name in names or SETS:
        if not (real / SETS[name]['at']).is_dir():
            print(f'{name}: not at hand, left out')
            continue
        report, split, seconds = looked_at(name, real)
        rows.append(count(name, copy.copy(report), split))
        found.append(extremes(name, report))
        print(
            f'{seconds:.0f} s',
            rows[-1],
            found[-1],
            *[line for line in report.lines()[1:] if not line.startswith('0 err')],
            sep='\n  ',
            flush=True,
        )
    if names or not rows:
        return
    write(HERE / 'results' / 'check_calibration.csv', rows)
    write(HERE / 'results' / 'check_thresholds.csv', left_out(found))


if __name__ == '__main__':
    main(*sys.argv[1:])
