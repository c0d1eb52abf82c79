"What strangers wrote reaches no terminal as it is: ids, labels, paths and errors cannot clear or rename one"
import os, pty, re, subprocess, sys, warnings
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from PIL import Image
from zoofast.core.errors import visible

HOSTILE = {'clear': '\x1b[2J', 'title': '\x1b]0;owned\x07', 'c1': '\x9b2J', 'back': 'good\rbad', 'bidi': 'a\u202egnp.1',
           'isolate': 'a\u2066b', 'delete': 'a\x7fb', 'bell': 'a\x07'}
STEERING = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')

def on_a_terminal(*args, cwd):
    "All that a command shows on a terminal of its own, and its exit code"
    main,its = pty.openpty()
    words = [sys.executable, '-m', 'zoofast.cli', *map(str, args)]
    p = subprocess.Popen(words, cwd=cwd, stdin=its, stdout=its, stderr=its)
    os.close(its)
    got = b''
    while True:
        try: piece = os.read(main, 2**16)
        except OSError: break                                    # its end
        if not piece: break
        got += piece
    os.close(main)
    return got.decode(),p.wait()

def harmless(text):
    "Nothing but letters and line breaks? A terminal itself makes each break \\r\\n"
    assert not (found := STEERING.search(text.replace('\r\n', '\n'))), (found, text[:2000])
    return text

@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    "A catalogue whose ids, labels and paths hold what steers a terminal"
    home = tmp_path_factory.mktemp('hostile')
    rng,rows = np.random.default_rng(0),[]
    for i,o in enumerate(HOSTILE.values()):
        for j in range(3):
            name = f'{i}{j}{o}.png'
            if j: Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(home/name)
            rows.append((f'{o}{i}{j}', name, o))
    df = pd.DataFrame(rows, columns=['id_str', 'file_loc', f'kind{HOSTILE["clear"]}'])
    df['kind'] = df.iloc[:, 2]
    df.to_parquet(home/f'cat{HOSTILE["clear"]}.parquet')
    return home

@pytest.mark.slow
@pytest.mark.parametrize('words', [
    ('check', f'cat{HOSTILE["clear"]}.parquet', '--label', 'kind'),
    ('check', f'cat{HOSTILE["clear"]}.parquet', '--label', 'knid'),
    ('check', f'none{HOSTILE["title"]}.csv'),
    ('check', 'none.csv', f'--no{HOSTILE["clear"]}'),
    (f'chekc{HOSTILE["title"]}{HOSTILE["bidi"]}',), (f'--ver{HOSTILE["clear"]}',),
    ('encoders', f'no{HOSTILE["c1"]}'), ('runs', f'no{HOSTILE["bidi"]}')], ids=lambda o: ascii(o[:2]))
def test_no_command_steers_the_terminal(hostile, run_zoofast, words):
    shown,code = on_a_terminal(*words, cwd=hostile)
    assert code==2 and re.search(r'\\x1b|\\x9b|\\u202e', harmless(shown))
    res = run_zoofast(*words, cwd=hostile)                       # a pipe ends on a terminal, too
    harmless(res.stdout + res.stderr)

@pytest.mark.slow
def test_rows_are_told_in_a_line_each(hostile, run_zoofast, tmp_path):
    pd.DataFrame({'id_str': ['a\nall 9 rows of x.csv can be used'], 'file_loc': ['no.png']}).to_csv(
        tmp_path/'x.csv', index=False)
    res = run_zoofast('check', 'x.csv', cwd=tmp_path)
    assert res.returncode==2 and not re.search('^all 9', res.stdout + res.stderr, re.M)
    assert 'a\\nall 9' in res.stdout

def test_a_warning_is_shown_as_all_else_is(capsys):
    from zoofast.cli import app
    before = warnings.showwarning
    try:
        app._show_warning(UserWarning(HOSTILE['clear']), UserWarning, app.__file__, 1)
    finally: warnings.showwarning = before
    assert harmless(capsys.readouterr().err)=='zoofast: \\x1b[2J\n'

def test_letters_of_all_languages_stay():
    for o in ('Señor', '銀河', 'ذراع', 'गैलेक्सी', 'μ=21 ± 0.1 🌌', 'a\tb\nc', "it's \\x1b"): assert visible(o)==o

def test_a_card_holds_no_such_signs():
    from zoofast.bundles.card import model_card
    task = dict(kind='classification', label='kind', classes=[*HOSTILE.values(), 'plain'])
    config = dict(task=task, encoder={'name': HOSTILE['title'], 'weights': HOSTILE['bidi']},
                  reader={'channels': 3, 'size': 64}, data={'galaxies': {HOSTILE['c1']: 3}}, versions={})
    card = harmless(model_card(config, f'runs/{HOSTILE["clear"]}'))
    assert '\\u202e' in card and '\n## Limitations' in card

def test_a_log_holds_no_such_signs(tmp_path):
    from zoofast.training.run_folder import RunFolder
    for o in HOSTILE.values(): RunFolder.log(SimpleNamespace(folder=tmp_path), f'left out: {o}')
    text = harmless((tmp_path/'log.txt').read_text(encoding='utf-8'))
    assert text.count('\n')==len(HOSTILE) and '\\x1b' in text

def test_wandb_is_told_no_such_signs():
    from zoofast.training.wandb import _shown
    got = _shown({HOSTILE['clear']: [HOSTILE['bidi'], {'a': HOSTILE['c1']}], 'n': 3})
    assert got=={'\\x1b[2J': ['a\\u202egnp.1', {'a': '\\x9b2J'}], 'n': 3}
