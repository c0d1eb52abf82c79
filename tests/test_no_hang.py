"What would make a command wait for ever, or fill the terminal, is refused at once and in a sentence"
import json, os, subprocess, sys, time
import pandas as pd, pytest

BOMB = 'a0: &a0 [x, x]\n' + ''.join(f'a{i}: &a{i} [{", ".join([f"*a{i-1}"]*9)}]\n' for i in range(1, 12))

def zoofast(*words, cwd, limit=30):
    "The finished command and its CPU seconds; one that never ends fails the test"
    before = os.times()
    res = subprocess.run([sys.executable, '-m', 'zoofast.cli', *map(str, words)], cwd=cwd, timeout=limit,
                         capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': os.getcwd()})
    after = os.times()
    assert 'Traceback' not in res.stderr, res.stderr[-2000:]
    assert len(res.stdout)+len(res.stderr)<50_000
    res.seconds = after.children_user+after.children_system-before.children_user-before.children_system
    return res

def small(folder, **cells):
    pd.DataFrame({'id_str': ['a', 'b'], 'file_loc': ['a.png', 'b.png'], 'ring': [0, 1], **cells}).to_csv(
        folder/'rings.csv', index=False)

@pytest.mark.slow
def test_a_table_of_100_000_columns(tmp_path):
    names = [f'col_{i}' for i in range(100_000)]
    lines = [','.join(['id_str', 'file_loc', *names]), ','.join(['a', 'a.png', *['1']*len(names)])]
    (tmp_path/'wide.csv').write_text('\n'.join(lines))
    for label in ('col_17', 'cll_17'):
        res = zoofast('check', 'wide.csv', '--label', label, cwd=tmp_path, limit=400)
        assert res.returncode==2 and ('col_' in res.stderr or 'cannot be used' in res.stderr)
        assert res.seconds<120                       # of CPU; each column looking at all others takes far more

def test_names_are_looked_at_once_each():
    from zoofast.catalog.tables import _header
    from zoofast.core.errors import did_you_mean
    names = [f'c{i}' for i in range(100_000)]
    began = time.process_time()
    assert len(_header(','.join(names).encode(), ',')[0])==100_000
    assert 'c1' in did_you_mean('c-17', names)
    did_you_mean('9'*10**6, names)
    assert time.process_time()-began<3
    with pytest.raises(ValueError, match="two columns are named 'c7'"): _header(b'c1,c7,c2,c7\n', ',')

@pytest.fixture
def runs(tmp_path):
    "A folder with a good run, and one for each thing that is wrong"
    bad = dict(bomb=BOMB, deep='a: '+'['*3000+']'*3000, itself='a: &a [*a]', twice='seed: 1\nseed: 2',
               lists='parameters: [1, 2]\ndata: 7', number=f'seed: {"9"*10_000}')
    for name,text in dict(good='parameters: {encoder: resnet18, seed: 7}', **bad).items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'config.yaml').write_text(f'zoofast_run: 1\n{text}\n')
    for name in ('history.csv', 'state.json'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'config.yaml').write_text('zoofast_run: 1\n')
        os.mkfifo(tmp_path/name/name)
    (tmp_path/'pipe').mkdir()
    os.mkfifo(tmp_path/'pipe'/'config.yaml')
    return tmp_path

def test_one_bad_run_hides_no_others(runs):
    res = zoofast('runs', '.', cwd=runs)
    assert res.returncode==0 and 'resnet18' in res.stdout and res.stdout.count('unreadable')>=6

@pytest.mark.slow(but=1)
@pytest.mark.parametrize('text,said', [
    (BOMB, 'stands for more than'), ('a: '+'['*3000+']'*3000, 'nest'),
    ('seed: 1\nepochs: 2\nseed: 3', "line 3: 'seed' is"),
    ('a: &a [*a]', 'itself'), ('model_name: resnet18\nepochs: 1.0e+30', 'epochs'),
    ('model_name: resnet18\nseed: '+'9'*5000, '')], ids=['bomb', 'deep', 'twice', 'itself', 'epochs', 'seed'])
def test_settings_that_cannot_be(tmp_path, text, said):
    small(tmp_path)
    (tmp_path/'s.yaml').write_text(text)
    res = zoofast('finetune', 'rings.csv', '--label', 'ring', '--settings', 's.yaml', '--save-dir', 'r', cwd=tmp_path)
    assert res.returncode==2 and said in res.stderr and len(res.stderr)<10_000

@pytest.mark.parametrize('text', ['{"epochs": 1, "epochs": 2}', '{"a": '+'['*100_000+']'*100_000+'}'],
                         ids=['twice', 'deep'])
def test_settings_in_words_that_cannot_be(tmp_path, text):
    small(tmp_path)
    res = zoofast('finetune', 'rings.csv', '--label', 'ring', '--settings', text[:100_000], '--save-dir', 'r',
                  cwd=tmp_path)
    assert res.returncode==2 and len(res.stderr)<10_000

@pytest.mark.slow
def test_a_cell_of_10_MB_is_not_printed_whole(tmp_path):
    small(tmp_path)
    pd.DataFrame({'id_str': ['x'*10**7]*2, 'file_loc': ['a.png', 'y'*10**7], 'ring': ['z'*10**7, 'w']}).to_csv(
        tmp_path/'long.csv', index=False)
    for label in ('ring', 'file_loc', 'v'*10**5):
        assert zoofast('check', 'long.csv', '--label', label, cwd=tmp_path).returncode==2

@pytest.mark.slow
def test_what_is_no_file_is_said_alike(tmp_path):
    os.mkfifo(tmp_path/'pipe.csv')
    small(tmp_path)
    pd.DataFrame({'id_str': ['a'], 'file_loc': ['/dev/zero'], 'ring': [1]}).to_csv(tmp_path/'zero.csv', index=False)
    for words,path in [(('check', 'pipe.csv'), 'pipe.csv'),
                       (('predict', 'none', 'pipe.csv', '--out', 'o.csv'), 'pipe.csv'),
                       (('check', 'zero.csv'), '/dev/zero'),
                       (('finetune', 'rings.csv', '--label', 'ring', '--settings', 'pipe.csv', '--save-dir', 'r'),
                        'pipe.csv'),
                       (('finetune', 'rings.csv', '--encoder', 'resnet18', '--weights', '/dev/zero', '--save-dir', 'r'),
                        '/dev/zero')]:
        res = zoofast(*words, cwd=tmp_path)
        assert res.returncode==2
        if words[0]!='predict': assert f'{path} is no ordinary file' in res.stdout+res.stderr, words

@pytest.mark.slow
def test_a_tree_of_questions_that_cannot_be(tmp_path):
    small(tmp_path)
    os.mkfifo(tmp_path/'pipe.json')
    (tmp_path/'deep.json').write_text('['*10**6)
    (tmp_path/'twice.json').write_text(json.dumps({'smooth': ['a', 'b']})[:-1] + ', "smooth": ["c", "d"]}')
    for name,said in [('pipe', 'no ordinary file'), ('deep', 'nested too deeply'), ('twice', 'is there twice')]:
        res = zoofast('finetune', 'rings.csv', '--schema', f'{name}.json', '--encoder', 'resnet18', '--save-dir', 'r',
                      cwd=tmp_path)
        assert res.returncode==2 and said in res.stderr
