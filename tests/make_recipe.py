"""Make deploy/conda/recipe.yaml, the recipe of a conda package, from settings.ini.

python tests/make_recipe.py            write the file
python tests/make_recipe.py --check    exit 1 with one line if the file is not what would be written
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = 'deploy/conda/recipe.yaml'
# conda-forge's name where it is another one than that of the wheel
CONDA = dict(torch='pytorch', matplotlib='matplotlib-base')
CONDA |= {'open_clip_torch': 'open-clip-torch', 'SimpleITK': 'simpleitk'}
EXTRAS = ('text', 'notebook', 'features', 'dicom', 'itk', 'geo', 'monai', 'register')

RECIPE = """\
# Made from settings.ini by tests/make_recipe.py: edit that. For conda-forge, `source` becomes the
# url and sha256 of a release, and `recipe-maintainers` those who will look after it.
context:
  version: "{version}"
  python_min: "{python}"

package:
  name: {name}
  version: ${{{{ version }}}}

source:
  path: ../..

build:
  number: 0
  noarch: python
  script: ${{{{ PYTHON }}}} -m pip install . -vv --no-deps --no-build-isolation
  python:
    entry_points:
      - {script}

requirements:
  host:
    - python ${{{{ python_min }}}}.*
    - pip
    - setuptools
  run:
    - python >=${{{{ python_min }}}}
{run}
  # the extras of the wheel: not installed, but of these versions where they are
  run_constraints:
{constraints}

tests:
  - python:
      imports:
        - xmodal
        - xmodal.translate
      python_version: ${{{{ python_min }}}}.*
  - script:
      - xmodal --version
      - xmodal bids-app --help

about:
  homepage: {url}
  repository: {url}
  summary: {summary}
  license: Apache-2.0
  license_file: LICENSE

extra:
  recipe-maintainers:
    - {user}
"""


def as_conda(requirement: str) -> str:
    "`torch>=2.6` as `pytorch >=2.6`."
    name, version = re.fullmatch(r'([\w-]+)(.*)', requirement).groups()
    return f'{CONDA.get(name, name)} {version}'.strip()


def lines(requirements) -> str:
    "Requirements as a list of YAML, each once."
    return '\n'.join(f'    - {r}' for r in sorted(map(as_conda, set(requirements)), key=str.lower))


def text_of(root=ROOT) -> str:
    "What the recipe holds."
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    cfg = ini['DEFAULT']
    extras = [r for name in EXTRAS for r in cfg[f'{name}_requirements'].split()]
    return RECIPE.format(
        version=cfg['version'],
        python=cfg['min_python'],
        name=cfg['lib_name'],
        script=cfg['console_scripts'].replace('=', ' = '),
        run=lines(cfg['requirements'].split()),
        constraints=lines(extras),
        url=cfg['git_url'],
        summary=f'"{cfg["description"]}"',
        user=cfg['user'],
    )


if __name__ == '__main__':
    there, text = ROOT / PLACE, text_of()
    if '--check' not in sys.argv:
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text, encoding='utf-8')
    elif not there.is_file() or there.read_text(encoding='utf-8') != text:
        sys.exit(f'{PLACE} is not what settings.ini says: run python tests/make_recipe.py')
