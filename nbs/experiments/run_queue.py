"""Run the stored experiments from nothing, one after another or several at once, and go on where it stopped.

    python nbs/experiments/run_queue.py                       # all of queue.yaml, an entry at a time
    python nbs/experiments/run_queue.py --list                # what is done, what is left, how long it takes
    python nbs/experiments/run_queue.py --workers 2 --only mean_spread,few_people
    python nbs/experiments/run_queue.py --smoke               # every notebook in its smallest form

An entry is a notebook of this folder with parameters. It is executed by papermill with one thread, at low priority; the
executed notebook lies in runs/queue/NAME.ipynb, what it has printed beside it in NAME.log. An entry that has ended well is
marked by NAME.done and not run again (delete the mark to repeat it); one that was stopped is begun again, and its notebook
goes on from the last checkpoints of its trainings. Entries of the same notebook are not run side by side, since they may
write the same table. The exit code is 1 if an entry has failed; those that need it are then left out.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEYS = {'name', 'run', 'with', 'after', 'minutes'}


def read_queue(path=HERE / 'queue.yaml'):
    "The entries of a queue, in order; raises ValueError for one that cannot be run."
    entries = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    names = [e.get('name') for e in entries]
    for k, e in enumerate(entries):
        if set(e) - KEYS or not {'name', 'run'} <= set(e):
            raise ValueError(f'entry {k + 1}: has {sorted(e)}; keys are {sorted(KEYS)}')
        if names.count(e['name']) > 1:
            raise ValueError(f'{e["name"]}: stands twice')
        if not (Path(path).parent / e['run']).is_file():
            raise ValueError(f'{e["name"]}: there is no notebook {e["run"]}')
        unknown = set(e.get('with', {})) - set(parameters_of(Path(path).parent / e['run']))
        if unknown:
            raise ValueError(
                f'{e["name"]}: {e["run"]} has no parameter {", ".join(sorted(unknown))}'
            )
        late = [n for n in e.get('after', []) if n not in names[:k]]
        if late:
            raise ValueError(f'{e["name"]}: comes after {late[0]}, which does not stand before it')
    return entries


def parameters_of(notebook):
    "Names of the parameters of a notebook, as papermill finds them."
    from papermill import inspect_notebook

    return list(inspect_notebook(str(notebook)))


def command_of(entry, folder, out, smoke):
    "The command of an entry, whose notebook lies in a folder."
    notebook = Path(folder) / entry['run']
    words = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(notebook)]
    words += [str(out / f'{entry["name"]}.ipynb')]
    values = dict(smoke=True) if smoke else entry.get('with', {})
    return words + [w for k, v in values.items() for w in ('-p', k, str(v))]


class Queue:
    "Entries, and what has become of them: done, failed, left out."

    def __init__(self, entries, out, smoke=False, folder=HERE):
        self.entries, self.out, self.smoke, self.folder = entries, Path(out), smoke, folder
        self.state, self.change = {}, threading.Condition()
        self.out.mkdir(parents=True, exist_ok=True)

    def mark(self, entry):
        "The file that says that an entry is done."
        return self.out / f'{entry["name"]}.done'

    def ready(self, entry):
        "May it be run now? None: never."
        needs = [self.state.get(n) for n in entry.get('after', [])]
        if any(v in ('failed', 'left out') for v in needs):
            return None
        same = [e for e in self.entries if e['run'] == entry['run']]
        busy = any(self.state.get(e['name']) == 'running' for e in same)
        return not busy and all(v == 'done' for v in needs)

    def take(self):
        "The next entry that can be run; None: there will be none."
        with self.change:
            while True:
                left = [e for e in self.entries if e['name'] not in self.state]
                if not left:
                    return None
                for e in left:
                    can = self.ready(e)
                    if can is None:
                        self.state[e['name']] = 'left out'
                        print(f'{e["name"]}: left out, as it needs one that failed', flush=True)
                        break
                    if can:
                        self.state[e['name']] = 'running'
                        return e
                else:
                    self.change.wait()

    def work(self):
        "Run entries until none is left."
        while entry := self.take():
            found = 'done' if self.mark(entry).is_file() else self.run(entry)
            with self.change:
                self.state[entry['name']] = found
                self.change.notify_all()

    def run(self, entry):
        "Execute an entry; done or failed."
        name, start = entry['name'], time.perf_counter()
        print(f'{time.strftime("%H:%M")} {name}', flush=True)
        env = os.environ | dict(OMP_NUM_THREADS='1')
        command = command_of(entry, self.folder, self.out, self.smoke)
        with open(self.out / f'{name}.log', 'w', encoding='utf-8') as log:
            how = dict(stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=ROOT)
            code = subprocess.run(['nice', '-n', '10', *command], **how).returncode
        minutes = (time.perf_counter() - start) / 60
        words = f'{minutes:.1f} minutes' if code == 0 else f'failed, see {self.out / name}.log'
        print(f'{time.strftime("%H:%M")} {name}: {words}', flush=True)
        if code:
            return 'failed'
        self.mark(entry).write_text(json.dumps(dict(minutes=round(minutes, 1))) + '\n')
        return 'done'


def table(queue):
    "Lines: name, minutes, done or not."
    for e in queue.entries:
        state = 'done' if queue.mark(e).is_file() else 'to run'
        yield f'{e["name"]:28} {e["run"]:26} {e.get("minutes", "?"):>5} minutes  {state}'


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--queue', default=HERE / 'queue.yaml', help='file of entries')
    p.add_argument('--only', default='', help='names, separated by commas')
    p.add_argument('--workers', type=int, default=1, help='entries at once')
    p.add_argument('--out', help='folder of the executed notebooks (default: runs/queue)')
    p.add_argument('--smoke', action='store_true', help='every notebook in its smallest form')
    p.add_argument('--list', action='store_true', help='only say what there is')
    a = p.parse_args()
    entries = read_queue(a.queue)
    only = [v for v in a.only.split(',') if v]
    lost = set(only) - {e['name'] for e in entries}
    if lost:
        p.error(f'--only: there is no entry {", ".join(sorted(lost))}')
    chosen = [e for e in entries if not only or e['name'] in only]
    chosen = [
        e | dict(after=[n for n in e.get('after', []) if not only or n in only]) for e in chosen
    ]
    out = a.out or ROOT / 'runs' / ('queue-smoke' if a.smoke else 'queue')
    queue = Queue(chosen, out, a.smoke, Path(a.queue).parent)
    if a.list:
        print('\n'.join(table(queue)))
        return 0
    with ThreadPoolExecutor(a.workers) as pool:
        list(pool.map(lambda _: queue.work(), range(a.workers)))
    return int(any(v != 'done' for v in queue.state.values()))


if __name__ == '__main__':
    sys.exit(main())
