"""The notebooks in a real browser: opened in JupyterLab, run from top to bottom, a slider moved, the picture seen to change.

    pytest --slow tests/test_browser.py        needs Chromium (Debian: apt-get install chromium) and `pip install playwright`

The path of the browser is taken from XMODAL_BROWSER, else found as chromium, chromium-browser or google-chrome.
Screenshots go to runs/browser/.
"""

import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]
BROWSER = os.environ.get('XMODAL_BROWSER') or next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab over a copy of the notebooks; gives its address."
    if not BROWSER:
        pytest.skip('no Chromium found: install one or set XMODAL_BROWSER')
    copy = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT / 'nbs', copy / 'nbs')
    shutil.copy(ROOT / 'settings.ini', copy)
    settings = (
        copy / 'settings' / '@jupyterlab' / 'notebook-extension' / 'tracker.jupyterlab-settings'
    )
    # every cell stands on the page, not only those in view
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')
    news = (
        copy
        / 'settings'
        / '@jupyterlab'
        / 'apputils-extension'
        / 'notification.jupyterlab-settings'
    )
    # no question in front of the picture
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JUPYTER_CONFIG_DIR': str(copy / 'config'),
        'JUPYTERLAB_SETTINGS_DIR': str(copy / 'settings'),
        'OMP_NUM_THREADS': '1',
    }
    server = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'jupyterlab',
            '--no-browser',
            '--allow-root',
            f'--port={port}',
            '--ServerApp.token=',
            '--ServerApp.password=',
            f'--ServerApp.root_dir={copy / "nbs"}',
            '--LabApp.news_url=None',
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f'http://127.0.0.1:{port}'
    set_parameters(copy / 'nbs' / 'translate.ipynb')
    for _ in range(120):
        try:
            urllib.request.urlopen(f'{url}/api', timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    yield url
    server.terminate()
    server.wait(20)


def set_parameters(notebook):
    """The viewer looks at a held-out real scan if there is a model of it (README, Real scans), else
    at a small made one.
    """
    model, scans = (
        ROOT / 'runs' / 'brain' / 'model',
        ROOT.parent / 'shared' / 'data' / 'brain' / 'sub-cs19' / 'anat',
    )
    given = (
        dict(
            model=str(model),
            source=str(scans / 'sub-cs19_T1w.nii.gz'),
            truth=str(scans / 'sub-cs19_T2w.nii.gz'),
        )
        if model.is_dir() and scans.is_dir()
        else dict(smoke=True)
    )
    nb = json.loads(notebook.read_text())
    cell = next(c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', []))
    cell['source'] = [
        next((f'{k} = {v!r}\n' for k, v in given.items() if line.startswith(f'{k} = ')), line)
        for line in cell['source']
    ]
    notebook.write_text(json.dumps(nb))


def run_all(page, address, seconds=300):
    "Open a notebook and run it from top to bottom; nothing may fail."
    page.goto(address, wait_until='domcontentloaded', timeout=60_000)
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=90_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=90_000)
    for attempt in range(4):  # a menu clicked before the kernel is there does nothing
        page.click('text="Run"')
        page.click('text="Run All Cells"')
        try:
            page.wait_for_function(
                "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].some(e"
                ' => /[*\\d]/.test(e.textContent))',
                timeout=20_000,
            )
            break
        except Exception:
            page.keyboard.press('Escape')
    # done when no cell is waiting ([*]) and the last code cell has a number
    done = (
        "() => { const p = [...document.querySelectorAll('.jp-CodeCell"
        " .jp-InputArea-prompt')].map(e => e.textContent); return !p.some(v => v.includes('*')) &&"
        ' /\\d/.test(p.at(-1)); }'
    )
    page.wait_for_function(done, timeout=1000 * seconds)
    failed = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert not failed.count(), failed.first.inner_text()[-2000:]


def move(page, slider, picture, key, n):
    "Press an arrow key on a slider until the picture changes; returns seconds."
    before = picture.get_attribute('src')
    slider.focus()
    start = time.perf_counter()
    for _ in range(n):
        page.keyboard.press(key)
    changed(picture, before)
    return time.perf_counter() - start


def changed(picture, before, seconds=20):
    "Wait until a picture is another one."
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            if picture.get_attribute('src', timeout=2000) != before:
                return
        except Exception:
            pass  # between two pictures there is none
        time.sleep(0.05)
    raise AssertionError(f'the picture has not changed for {seconds} s')


@pytest.mark.parametrize('notebook', ['10_bridge', '11_mixing', '12_sample', '13_energy'])
def test_a_slider_changes_the_picture(lab, notebook):
    from playwright.sync_api import sync_playwright

    shots = ROOT / 'runs' / 'browser'
    shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1300, height=1000))
        run_all(page, f'{lab}/lab/tree/{notebook}.ipynb?reset')
        picture = page.locator('.widget-interact img').first
        picture.scroll_into_view_if_needed(timeout=20_000)
        try:
            seconds = move(
                page,
                page.locator(
                    '.widget-interact [role="slider"], .widget-interact .noUi-handle'
                ).first,
                picture,
                'ArrowLeft',
                4,
            )
        finally:
            page.screenshot(path=str(shots / f'{notebook}.png'))
        print(f'{notebook}: picture changed {seconds:.2f} s after the slider moved')
        browser.close()


def test_the_viewer_moves_through_a_scan(lab):
    """nbs/translate.ipynb: another slice by the slider, another side by a button; the screenshot in
    the README is this one.
    """
    from playwright.sync_api import sync_playwright

    shots = ROOT / 'runs' / 'browser'
    shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1500, height=760))
        run_all(page, f'{lab}/lab/tree/translate.ipynb?reset', 900)
        picture = page.locator('.jupyter-widgets.widget-vbox img').last
        picture.scroll_into_view_if_needed(timeout=20_000)
        slider = page.locator('.jupyter-widgets.widget-vbox .noUi-handle').first
        seconds = move(page, slider, picture, 'ArrowRight', 6)
        print(f'viewer: picture changed {seconds:.2f} s after the slider moved')
        page.keyboard.press('Control+b')
        time.sleep(1)  # the list of files away
        # every press has been drawn
        page.wait_for_selector(
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=90_000
        )
        time.sleep(1)
        picture.scroll_into_view_if_needed(timeout=20_000)
        page.screenshot(path=str(shots / 'viewer.png'))
        # another side
        before = picture.get_attribute('src')
        page.locator('.widget-toggle-button').first.click()
        changed(picture, before)
        browser.close()
