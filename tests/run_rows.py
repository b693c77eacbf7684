"""Run nbs/train.ipynb through papermill once per method, all in this one process: imports and made data are paid for once.

    python tests/run_rows.py REPORT.json NAME=RUN ...        NAME a row of the table of methods, RUN a name under runs/

papermill finds, checks and injects the parameters as ever; only the kernel is replaced, by `exec` in a fresh namespace for each notebook. Each row is trained for a
few steps, and then started again with `resume`, which must find it finished and unchanged. The report maps each method to '' or to what went wrong.
"""

import contextlib, json, shutil, sys, time, traceback
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import papermill
from matplotlib.figure import Figure
from papermill.engines import Engine, papermill_engines

ROOT = Path(__file__).resolve().parents[1]


class OneProcess(Engine):
    """Executes the cells of a notebook in this process; `figures` counts the figures that it left
    open.
    """

    figures = 0

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kw):
        import matplotlib.pyplot as plt
        from IPython.display import display

        space = {'__name__': '__main__', 'display': display}  # what a kernel has without an import
        plt.close('all')
        for index, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != 'code':
                continue
            nb_man.cell_start(cell, index)
            exec(
                compile(
                    cell.source,
                    f'{Path(nb_man.nb.metadata.get("papermill", {}).get("input_path", "notebook")).name},'
                    f' cell {index}',
                    'exec',
                ),
                space,
            )
            nb_man.cell_complete(cell, index)
        cls.figures = len(plt.get_fignums())
        plt.close('all')


def execute(notebook, cwd=ROOT, **parameters) -> int:
    """A notebook with parameters, by papermill in this process; the number of its figures.

    What it raises is raised here.
    """
    import warnings

    said = warnings.formatwarning
    try:
        papermill.execute_notebook(
            notebook,
            None,
            parameters=parameters,
            engine_name='one',
            kernel_name='python3',
            progress_bar=False,
            cwd=cwd,
        )
    finally:
        warnings.formatwarning = said
    return OneProcess.figures


@contextlib.contextmanager
def unpainted():
    "Figures are made and files of their names written, but nothing is painted."
    usual = Figure.savefig

    def named(fig, where, **how):
        if not isinstance(where, (str, Path)):  # into memory: somebody reads it
            return usual(fig, where, **how)
        return Path(where).write_bytes(b'not painted')

    Figure.savefig = named
    try:
        yield
    finally:
        Figure.savefig = usual


PAINTED = ('cdtsde', 'metadb', 'regression')  # one of each kind; the others would paint the same


def row(method, run):
    """Train, then resume; raises if the second start changed the weights, or wrote other figures.

    What the second start shows is what the first has painted.
    """
    words = dict(method=method, name=run, smoke=True, baseline=False, check=False, steps=4)
    words |= dict(made_subjects=4, slices=6)
    start = lambda **more: execute(ROOT / 'nbs' / 'train.ipynb', **words, **more)
    run = ROOT / 'runs' / run

    def weights():
        return {
            f.relative_to(run): f.read_bytes()
            for part in ('model', 'checkpoints')
            for f in (run / part).rglob('*.safetensors')
        }

    def figures():
        return {f.name for f in (run / 'figures').iterdir() if f.is_file()}  # not of validations

    with contextlib.nullcontext() if method in PAINTED else unpainted():
        start(overwrite=True)
    first, shown = weights(), figures()
    (run / 'model' / 'model.safetensors').unlink()
    shutil.rmtree(run / 'figures')
    with unpainted():
        start(resume=True)
    assert figures() == shown, f'started again with resume, it shows {figures()}, not {shown}'
    assert weights() == first, 'a finished run, started again with resume, gave other weights'


papermill_engines.register('one', OneProcess)

if __name__ == '__main__':
    report = {}
    for pair in sys.argv[2:]:
        method, run = pair.split('=')
        begun = time.perf_counter()
        try:
            row(method, run)
            report[method] = ''
        except Exception:
            report[method] = traceback.format_exc()[-3000:]
        print(
            f'{method:16s} {time.perf_counter() - begun:5.1f} s'
            f' {"failed" if report[method] else ""}',
            flush=True,
        )
    Path(sys.argv[1]).write_text(json.dumps(report))
