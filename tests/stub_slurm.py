"""A SLURM of one machine, for tests: sbatch, srun, sacct, scontrol and scancel as scripts that do what submitit asks of
them. Jobs are processes; their states lie in a folder."""
import os, sys
from pathlib import Path

SBATCH = r'''
import json, os, re, subprocess, sys
from pathlib import Path
home,script = Path(os.environ['STUB_SLURM']),Path(sys.argv[1]).read_text()
if why := os.environ.get('STUB_REFUSES'): sys.exit(f'sbatch: error: {why}')
job = str(4711+len(list(home.glob('*.sh'))))
(home/f'{job}.sh').write_text(script)
(home/f'{job}.words').write_text(json.dumps(sys.argv))
array = re.search(r'^#SBATCH --array=0-(\d+)', script, re.M)
for task in range(int(array[1])+1) if array else [None]:
    id = job if task is None else f'{job}_{task}'
    if str(task) in os.environ.get('STUB_WAITS', '').split(): (home/f'{id}.state').write_text('PENDING')
    else:
        words = [sys.executable, home/'bin'/'_job', job, '' if task is None else str(task)]
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(f'Submitted batch job {job}')
'''

JOB = r'''
import os, re, subprocess, sys
from pathlib import Path
home,(job,task) = Path(os.environ['STUB_SLURM']),sys.argv[1:]
id = f'{job}_{task}' if task else job
env = {**os.environ, 'SLURM_JOB_ID': job, 'SLURM_NTASKS': '1', 'SLURM_JOB_NUM_NODES': '1', 'SLURM_NODEID': '0',
       'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
if task: env |= {'SLURM_ARRAY_JOB_ID': job, 'SLURM_ARRAY_TASK_ID': task}
while True:
    (home/f'{id}.again').unlink(missing_ok=True)
    (home/f'{id}.state').write_text('RUNNING')
    p = subprocess.Popen(['bash', home/f'{job}.sh'], env=env)
    (home/f'{id}.pid').write_text(str(p.pid))
    code = p.wait()
    if not (home/f'{id}.again').exists(): break
(home/f'{id}.state').write_text('COMPLETED' if code==0 else 'OUT_OF_MEMORY' if code==137 else 'FAILED')
'''

SRUN = r'''
import os, subprocess, sys
words,where,known = sys.argv[1:],{},('--output', '--error')
while words[0].startswith('-'):
    w = words.pop(0)
    if w in known: where[w] = words.pop(0)
    elif '=' not in w and w!='--unbuffered': sys.exit(f'srun: what is {w}?')
job,task = os.environ.get('SLURM_ARRAY_JOB_ID'),os.environ.get('SLURM_ARRAY_TASK_ID')
def path(o):
    o = o.replace('%A', job or '').replace('%a', task or '')
    return o.replace('%j', os.environ['SLURM_JOB_ID']).replace('%t', '0')
out,err = (open(path(where[k]), 'a') for k in known)
p = subprocess.run(words, stdout=out, stderr=err)
sys.exit(128-p.returncode if p.returncode<0 else p.returncode)
'''

SACCT = r'''
import os
from pathlib import Path
print('JobID|State|NodeList')
for o in sorted(Path(os.environ['STUB_SLURM']).glob('*.state')): print(f'{o.stem}|{o.read_text() or "RUNNING"}|here')
'''

SCONTROL = r'''
import os, sys
from pathlib import Path
assert sys.argv[1]=='requeue'
(Path(os.environ['STUB_SLURM'])/f'{sys.argv[2]}.again').touch()
'''

SCANCEL = r'''
import os, sys
from pathlib import Path
for id in sys.argv[1:]: (Path(os.environ['STUB_SLURM'])/f'{id}.state').write_text('CANCELLED by 0')
'''

def stub_slurm(folder):
    "Variables with which commands find this SLURM"
    folder = Path(folder)
    (folder/'bin').mkdir(parents=True)
    for name,text in dict(sbatch=SBATCH, srun=SRUN, sacct=SACCT, scontrol=SCONTROL, scancel=SCANCEL, _job=JOB).items():
        (folder/'bin'/name).write_text(f'#!{sys.executable}\n{text}')
        (folder/'bin'/name).chmod(0o755)
    return {'STUB_SLURM': str(folder), 'PATH': f"{folder/'bin'}{os.pathsep}{os.environ['PATH']}"}
