"""A stand-in for W&B's server on loopback, for W&B's own client: it takes sweeps and runs and keeps what they send,
hands an agent the runs that it was told to, and lets a run go on.

What it cannot show: how W&B's server chooses values (bayes) and ends trials (hyperband), its charts, and whether it
would refuse what is taken here."""
import gzip, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote
import yaml

class Handler(BaseHTTPRequestHandler):
    "Reads what the client sends, and sends what the stub of its server answers"
    def log_message(self, *args): pass
    def do_GET(self): self.answer({})
    def do_PUT(self):
        self.body()
        self.answer({})
    def do_POST(self):
        stub,body,path = self.server.stub,self.body(),unquote(self.path)
        with stub.lock:
            if path=='/graphql':
                got = json.loads(body)
                try: self.answer({'data': stub.graphql(got['query'], got.get('variables') or {})})
                except ValueError as e: self.answer({'data': None, 'errors': [{'message': str(e)}]}, 403)
            elif path.endswith('/file_stream'): self.answer(stub.stream(path.split('/')[-2], json.loads(body)))
            else: self.answer({})                        # the client's own telemetry
    def body(self):
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            data = b''
            while n := int(self.rfile.readline(), 16): data,_ = data+self.rfile.read(n),self.rfile.readline()
            self.rfile.readline()
        else: data = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        return gzip.decompress(data) if self.headers.get('Content-Encoding')=='gzip' else data
    def answer(self, o, status=200):
        text = json.dumps(o).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)

class StubWandb:
    """`values`: dicts by name, one for each run that an agent is given; `stops`: runs that are to be ended after an
    epoch; `refuse`: why no sweep is taken. What was sent: `sweeps` (as they would be stored), `runs` by id (`config`,
    `rows`, `summary`, `sweep`, `exit`, `starts`), `artifacts`, `calls`"""
    def __init__(self, values=()):
        self.values = list(values)
        self.stops,self.refuse = set(),None
        self.sweeps,self.runs,self.artifacts = [],{},[]
        self.calls,self.states = [],[]
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.stub = self
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, name):
        new = SimpleNamespace(config={}, rows=[], summary={}, sweep=None, exit=None, starts=0, project=None)
        return self.runs.setdefault(name, new)

    def stream(self, name, got):
        "Rows of the history and the summary, as they come; a run that goes on says from which offset its rows count"
        r = self.run(name)
        for file,part in (got.get('files') or {}).items():
            told = file.endswith(('history.jsonl', 'summary.json'))
            lines = [json.loads(o) for o in part['content']] if told else []
            if file.endswith('history.jsonl'): r.rows[part['offset']:part['offset']+len(lines)] = lines
            elif lines: r.summary = lines[-1]
        if got.get('complete'): r.exit = got.get('exitcode')
        return {}

    def graphql(self, query, v):
        name = (re.search(r'(?:query|mutation)\s+(\w+)', query) or [None, ''])[1]
        self.calls.append(name)
        entity = {'id': 'e', 'name': 'me'}
        project = {'id': 'p', 'name': v.get('projectName') or v.get('project') or 'zoofast', 'entity': entity}
        if name=='UpsertSweep':
            if self.refuse: raise ValueError(self.refuse)
            self.sweeps.append(yaml.safe_load(v['config']))
            sweep = {'name': f'swp{len(self.sweeps)}', 'project': project}
            return {'upsertSweep': {'sweep': sweep, 'configValidationWarnings': []}}
        if name=='SweepWithRuns': return {'project': {'sweep': self.sweep(v['sweep'])}}
        if name=='CreateAgent': return {'createAgent': {'agent': {'id': 'agent1'}}}
        if name=='Heartbeat':
            commands = self.next(json.loads(v.get('runState') or '{}'))
            return {'agentHeartbeat': {'agent': {'id': 'agent1'}, 'commands': json.dumps(commands)}}
        if name=='RunResumeStatus': return {'model': {**project, 'bucket': self.resumed(v['name'])}}
        if name=='UpsertBucket': return {'upsertBucket': self.bucket(v, project)}
        if name=='CreateRunFiles':
            files = [{'name': f, 'uploadUrl': f'{self.url}/upload'} for f in v['files']]
            return {'createRunFiles': {'runID': v['run'], 'uploadHeaders': [], 'files': files}}
        if name=='MarkRunFilesUploaded': return {'markRunFilesUploaded': {'success': True}}
        return self.artifact(name, v) or self.about(entity, project)

    def about(self, entity, project):
        "What any other question is answered: who asks, and the server"
        viewer = {'id': 'v', 'username': 'me', 'email': 'me@example.org', 'admin': False, 'entity': 'me', 'flags': '{}',
                  'teams': {'edges': []}, 'apiKeys': {'edges': []}}
        server = {'cliVersionInfo': {}, 'latestLocalVersionInfo': None, 'features': []}
        return {'viewer': viewer, 'serverInfo': server, 'entity': {**entity, 'organization': None},
                'model': project, 'project': project}

    def sweep(self, name):
        last = self.sweeps[-1]
        return {'id': 's', 'name': name, 'state': 'RUNNING', 'method': last['method'], 'description': '',
                'config': yaml.safe_dump(last), 'runs': {'edges': []}, 'bestLoss': None,
                'createdAt': '2030-01-01T00:00:00', 'updatedAt': None, 'heartbeatAt': None,
                'earlyStopJobRunning': False, 'controller': None, 'scheduler': None}

    def next(self, states):
        "What an agent is told: one run after another, then to end"
        self.states.append(states)
        validated = lambda o: any('valid_loss' in r for r in self.run(o).rows)
        late = [o for o,on in states.items() if on and o in self.stops and validated(o)]
        if late: return [{'type': 'stop', 'run_id': o} for o in late]
        if any(states.values()): return []
        if not self.values: return [{'type': 'exit'}]
        args = {k: {'value': o} for k,o in self.values.pop(0).items()}
        asked = {'program': self.sweeps[-1]['program'], 'args': args}
        return [{'type': 'run', 'run_id': f'run{len(self.runs)+1}', **asked}]

    def bucket(self, v, project):
        new = v['name'] not in self.runs
        r = self.run(v['name'])
        r.config |= json.loads(v.get('config') or '{}')
        r.summary |= json.loads(v.get('summaryMetrics') or '{}')
        r.sweep = v.get('sweep') or r.sweep
        r.project = v.get('project') or r.project
        if v.get('host') or new: r.starts += 1
        bucket = {'id': f"id-{v['name']}", 'name': v['name'], 'displayName': v.get('displayName') or v['name'],
                  'description': '', 'config': json.dumps(r.config), 'sweepName': r.sweep,
                  'historyLineCount': len(r.rows), 'project': project}
        return {'bucket': bucket, 'inserted': new}

    def resumed(self, name):
        "What a run that goes on is told of its past; nothing where there is none"
        if name not in self.runs: return None
        r = self.runs[name]
        tail = json.dumps([json.dumps(o) for o in r.rows[-1:]])
        return {'name': name, 'displayName': name, 'id': f'id-{name}', 'tags': [],
                'config': json.dumps(r.config), 'wandbConfig': json.dumps({'t': 1}),
                'summaryMetrics': json.dumps(r.summary), 'historyLineCount': len(r.rows), 'historyTail': tail,
                'eventsLineCount': 0, 'eventsTail': '[]', 'logLineCount': 0}

    def upload(self, name):
        "How a file of this name is sent"
        return {'name': name, 'displayName': name, 'uploadUrl': f'{self.url}/upload', 'uploadHeaders': []}

    def artifact(self, name, v):
        if name=='ArtifactType': return {'project': {'artifact': None}}       # no artifact of that name yet
        if name=='CreateArtifact':
            self.artifacts.append(v['input'])
            sequence = {'id': 'seq', 'latestArtifact': None}
            made = {'id': f'art{len(self.artifacts)}', 'state': 'PENDING', 'artifactSequence': sequence}
            return {'createArtifact': {'artifact': made}}
        if name in ('CreateArtifactManifest', 'UpdateArtifactManifest'):
            file = self.upload(v['name'] if name=='CreateArtifactManifest' else 'm')
            manifest = {'id': 'm', 'file': {'id': 'f', **file}}
            return {name[0].lower()+name[1:]: {'artifactManifest': manifest}}
        if name=='CreateArtifactFiles':
            nodes = [{'id': f['name'], **self.upload(f['name']), 'uploadMultipartUrls': None, 'storagePath': f['name'],
                      'artifact': {'id': f['artifactID']}} for f in v['input']['artifactFiles']]
            return {'createArtifactFiles': {'files': {'edges': [{'node': o} for o in nodes]}}}
        if name=='CommitArtifact': return {'commitArtifact': {'artifact': {'id': v['artifactID'], 'digest': 'd'}}}

    def close(self): self.server.shutdown()
