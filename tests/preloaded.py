"""Processes of Python that start with the package loaded

To load torch, fastai and timm takes seconds, and the tests start hundreds of processes. Here one process loads them
(`multiprocessing`'s fork server), and what a test starts is a fork of it, with its own arguments, folder, environment
and streams, to be read, signalled and killed as any other. A test of how the command itself starts does not use it."""
import atexit, multiprocessing, os, runpy, subprocess, sys, threading, types, warnings
from concurrent.futures import ThreadPoolExecutor

FORK = multiprocessing.get_context('forkserver')
FORK.set_forkserver_preload(['zoofast.training.finetune', 'zoofast.predict.table', 'zoofast.cli.finetune'])
# Read when they are wanted, by what is not loaded before. Where another variable differs, a process starts as ever
LATE = 'PYTHONPATH', 'ZOOFAST_', 'WANDB_', 'DASK_', 'AT', 'GO', 'CHANGES'

def start(words, cwd=None, env=None):
    """The process of `python *words`, where `words` are `-m module ...` or `-c code ...`, after `-W ignore` or not;
    `env` is added to the environment, and what is None in it taken away"""
    words,cwd = [str(o) for o in words],str(cwd or os.getcwd())
    env = {k: str(v) for k,v in {**os.environ, **(env or {})}.items() if v is not None}
    changed = {k for k in {*env, *os.environ} if env.get(k)!=os.environ.get(k)}
    if all(o.startswith(LATE) for o in changed): return Fork(words, cwd, env)
    return subprocess.Popen([sys.executable, *words], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)

def run(words, cwd=None, env=None):
    "The finished process of `python *words`, with `returncode`, `stdout` and `stderr`"
    p = start(words, cwd, env)
    said = p.communicate()
    return subprocess.CompletedProcess(words, p.returncode, *said)

class Fork:
    "What tests use of `subprocess.Popen`, of a fork of the process that has everything loaded"
    def __init__(self, words, cwd, env):
        pipes = [FORK.Pipe(duplex=False) for _ in range(2)]
        self.process = FORK.Process(target=_become, args=(words, cwd, env, [o for _,o in pipes]))
        self.process.start()
        for _,o in pipes: o.close()
        self.stdout,self.stderr = (open(os.dup(o.fileno()), encoding='utf-8') for o,_ in pipes)
        self.pid = self.process.pid

    @property
    def returncode(self): return self.process.exitcode
    def poll(self): return self.process.exitcode
    def send_signal(self, n): os.kill(self.pid, n)
    def kill(self): self.process.kill()
    def terminate(self): self.process.terminate()
    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None: raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
        return self.returncode
    def communicate(self, timeout=None):
        late = threading.Timer(timeout or 1e6, self.kill)
        late.daemon = True
        late.start()
        with ThreadPoolExecutor(2) as pool: said = [*pool.map(lambda o: o.read(), (self.stdout, self.stderr))]
        self.wait()
        late.cancel()
        return said

# in the fork
def _become(words, cwd, env, streams):
    "What `python *words` does once it is loaded"
    for fd,o in enumerate(streams, 1): os.dup2(o.fileno(), fd), o.close()
    os.chdir(cwd)
    sys.path += [o for o in env.get('PYTHONPATH', '').split(os.pathsep) if o not in sys.path]
    os.environ.clear(), os.environ.update(env)
    try: _run(words, cwd)
    except SystemExit: raise
    except BaseException as e: sys.excepthook(type(e), e, e.__traceback__), sys.exit(1)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()      # multiprocessing ends its processes without

def _run(words, cwd):
    if words[:2]==['-W', 'ignore']:
        sys.warnoptions[:] = ['ignore']
        warnings.simplefilter('ignore')
        words = words[2:]
    how,what,*words = words
    sys.argv = [what if how=='-m' else how, *words]
    sys.path.insert(0, cwd if how=='-m' else '')
    if how=='-m': return runpy.run_module(what, run_name='__main__', alter_sys=True)
    sys.modules['__main__'] = main = types.ModuleType('__main__')
    exec(compile(what, '<string>', 'exec'), main.__dict__)
