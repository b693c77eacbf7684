"Flags of the pytest side, the same words as `tst_flags` in settings.ini: an unflagged run needs a CPU, no data and a few minutes."

import os

# read when torch is imported
for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(name, '1')

import pytest

FLAGS = {
    'slow': 'takes minutes',
    'gpu': 'needs a CUDA device',
    'real': 'needs real data on this machine',
}


# Files that train, run notebooks or start processes. They come first (`make test` keeps the order by
# --no-loadscope-reorder), and the many quick ones fill up the end, so that no core waits for another.
LONG = (
    'test_experiments',
    'test_main_job',
    'test_rows',
    'test_derivations',
    'test_scale',
    'test_translate',
    'test_hostile',
    'test_project',
    'test_evaluate',
    'test_runs',
    'test_native',
    'test_packaging',
    'test_site',
)


def place(item):
    "Where a test stands: the long files in their order, then the others as they were found."
    return LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)


def pytest_addoption(parser):
    for flag, why in FLAGS.items():
        parser.addoption(
            f'--{flag}', action='store_true', help=f'also run tests marked {flag}: {why}'
        )


def pytest_configure(config):
    for flag, why in FLAGS.items():
        config.addinivalue_line('markers', f'{flag}: {why}; runs only with --{flag}')


def pytest_collection_modifyitems(config, items):
    items.sort(key=place)
    for item in items:
        for flag, why in FLAGS.items():
            if flag in item.keywords and not config.getoption(f'--{flag}'):
                item.add_marker(pytest.mark.skip(reason=f'{why}: run with --{flag}'))
