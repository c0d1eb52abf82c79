"Who reads what a command says may stop to do so, and what it does goes on; a result that is lost is an error"
import os, shlex, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image

def shell(line, cwd):
    "A line of a shell, in which `zoofast` is the command"
    words = shlex.join([sys.executable, '-m', 'zoofast.cli'])
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)}
    return subprocess.run(['bash', '-c', f'set -o pipefail; {line.replace("zoofast", words)}'], cwd=cwd, env=env,
                          capture_output=True, text=True)

@pytest.fixture
def folder(tmp_path):
    "Thirty pictures and their catalogue"
    rng = np.random.default_rng(0)
    for i in range(30): Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
    df = pd.DataFrame({'id_str': [f'g{i}' for i in range(30)], 'file_loc': [f'{i}.png' for i in range(30)]})
    df.assign(ring=np.arange(30)%2).to_csv(tmp_path/'rings.csv', index=False)
    return tmp_path

@pytest.mark.slow
@pytest.mark.parametrize('closed', ['2>&-', '0<&-', '>&- 2>&-', '0<&- 2>&-'])
def test_a_closed_stream_is_none(folder, closed):
    res = shell(f'zoofast check rings.csv --label ring {closed}', folder)
    assert res.returncode==0 and 'Traceback' not in res.stderr
    if '>&- ' not in closed: assert 'all 30 rows' in res.stdout
    assert shell(f'zoofast check none.csv {closed}', folder).returncode==2

@pytest.mark.slow
def test_a_reader_that_stops(folder):
    res = shell('zoofast encoders resnet | head -n 1', folder)
    assert res.returncode==0 and res.stdout.count('\n')==1 and not res.stderr

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_result_that_is_lost_is_an_error(folder):
    res = shell('zoofast check rings.csv --label ring > /dev/full', folder)
    assert res.returncode==2 and 'no space left' in res.stderr.lower() and 'Traceback' not in res.stderr
    assert shell('zoofast check rings.csv --label ring 2> /dev/full', folder).returncode==0
