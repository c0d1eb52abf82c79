"A call that is killed at one of its steps on the disk"
import os, signal, sys

def killed_at(step, f, names='link replace rename unlink mkdir rmdir fsync'):
    """Call `f` in a process of its own that is killed by SIGKILL before the given of its calls of these functions of
    `os`, by none where that is `None`; returns the exit code"""
    if pid := os.fork(): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = 0
    def counted(g):
        def h(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen==step: os.kill(os.getpid(), signal.SIGKILL)
            return g(*args, **kwargs)
        return h
    if step:
        for o in names.split(): setattr(os, o, counted(getattr(os, o)))
    try: f()
    except BaseException as e:                                   # the parent is told by the code
        print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
