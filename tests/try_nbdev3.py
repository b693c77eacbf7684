"""Is the way to nbdev 3 open? Migrates a copy of the project and runs it: export, clean, tests.

/a/venv/with/nbdev3/bin/python tests/try_nbdev3.py FOLDER [NOTEBOOK ...]

FOLDER is made and holds the copy. The modules that nbdev 3 exports must be ours but for what
nbdev 3 adds (the address of the documentation in the docstring of a module, other quotes of the
version), and the tag `parameters` must survive its cleaning. Each NOTEBOOK is then run by
nbdev-test, which needs all that the project needs. Exit code 1, and a line for each difference.
"""

import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copied(to: Path):
    "What git has, or would take."
    cmd = ['git', '-c', 'safe.directory=*', 'ls-files', '-z', '--cached', '--others']
    names = subprocess.run([*cmd, '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.split('\0'):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def tool(name: str, *words, cwd: Path):
    "A command of nbdev 3, of the environment that runs this file; ends with its errors."
    exe = Path(sys.executable).with_name(name)
    if not exe.is_file():
        sys.exit(f'{exe} is missing: install "nbdev>=3" into an environment of its own')
    done = subprocess.run([exe, *words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f'{name} {" ".join(map(str, words))} failed:\n{(done.stdout + done.stderr)[-3000:]}'
        )


def migrated(to: Path):
    "settings.ini and setup.py become pyproject.toml, with what the command leaves out."
    tool('nbdev-migrate-config', cwd=to)
    ini = ConfigParser(delimiters=['='])
    ini.read(to / 'settings.ini', encoding='utf-8')
    text = (to / 'pyproject.toml').read_text(encoding='utf-8')
    kept = ini['DEFAULT']['allowed_cell_metadata_keys'].split()
    if 'allowed_cell_metadata_keys' not in text:
        text = text.replace(
            '[tool.nbdev]\n', f'[tool.nbdev]\nallowed_cell_metadata_keys = {kept}\n'
        )
    text = text.replace('include = ["xmodal"]', 'include = ["xmodal", "xmodal.*"]')
    (to / 'pyproject.toml').write_text(text, encoding='utf-8')
    for name in ('settings.ini', 'setup.py'):
        (to / name).unlink()


def plain(text: str) -> str:
    "A module without what nbdev 3 writes otherwise."
    text = re.sub(r'\n\nDocs: \S+"""', '"""', text, count=1)
    return re.sub(r"""__version__ = ['"](.*)['"]""", r'__version__ = \1', text)


def differences(to: Path) -> list:
    "Modules that are not ours, and papermill notebooks that lost their tag."
    for p in (to / 'xmodal').rglob('*.py'):
        p.unlink()
    tool('nbdev-export', cwd=to)
    tool('nbdev-clean', cwd=to)
    modules = lambda r: {p.relative_to(r): p.read_text() for p in (r / 'xmodal').rglob('*.py')}
    old, new = modules(ROOT), modules(to)
    out = [
        f'{p}: nbdev 3 exports something else'
        for p in sorted(old.keys() | new.keys())
        if p.name != '_modidx.py' and plain(old.get(p, '')) != plain(new.get(p, ''))
    ]
    for p in sorted((ROOT / 'nbs').glob('*.ipynb')):
        tags = [
            [c['metadata'].get('tags') for c in json.loads(path.read_text())['cells']]
            for path in (p, to / p.relative_to(ROOT))
        ]
        if tags[0] != tags[1]:
            out.append(f'{p.relative_to(ROOT)} loses the tags of its cells')
    return out


def main() -> int:
    to = Path(sys.argv[1])
    if to.exists():
        sys.exit(f'{to} exists: name a new folder')
    copied(to)
    migrated(to)
    found = differences(to)
    print(*(found or ['nbdev 3 exports the same package']), sep='\n')
    for notebook in sys.argv[2:]:
        tool('nbdev-test', notebook, cwd=to)
        print(f'{notebook} runs')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
