"""A small Hugging Face hub on this machine, for tests: what huggingface_hub's client asks for when it uploads to and
downloads from a model repository"""
import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

class Hub(ThreadingHTTPServer):
    """`.repos`: name -> branch -> list of commits (id, files); `.asked`: methods and paths, in order; `.token`: the
    one that may write"""
    daemon_threads = True
    def __init__(self, token='hf_write'):
        super().__init__(('127.0.0.1', 0), Handler)
        self.token = token
        self.repos,self.blobs = {},{}
        self.private,self.gated = set(),set()
        self.asked,self.broken = [],None
        threading.Thread(target=self.serve_forever, daemon=True).start()
    @property
    def url(self): return f'http://127.0.0.1:{self.server_address[1]}'
    def add(self, repo, files, branch='main'):
        "A commit with these files; returns its id"
        commits = self.repos.setdefault(repo, {}).setdefault(branch, [])
        now = {**(commits[-1][1] if commits else {}), **files}
        digests = sorted((k, hashlib.sha1(v).hexdigest()) for k,v in now.items())
        sha = hashlib.sha1(repr((repo, len(commits), digests)).encode()).hexdigest()
        commits.append((sha, now))
        return sha
    def at(self, repo, revision):
        "Id and files of a branch or a commit"
        branches = self.repos[repo]
        if revision in branches: return branches[revision][-1] if branches[revision] else ('0'*40, {})
        return next((c for b in branches.values() for c in b if c[0]==revision), None)

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def answer(self, data=b'', code=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        sent = {'Content-Length': len(body), 'Content-Type': 'application/json'}
        sent |= {k.replace('_', '-'): v for k,v in headers.items()}
        for k,v in sent.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)
    def refuse(self, code, why='', error=None):
        self.answer({'error': why}, code, **({'X_Error_Code': error} if error else {}), X_Error_Message=why)
    def body(self):
        if self.headers.get('Transfer-Encoding'): return b''.join(iter(self._chunk, b''))
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    def _chunk(self):
        n = int(self.rfile.readline(), 16)
        data = self.rfile.read(n)
        self.rfile.readline()
        return data
    def may_write(self): return self.headers.get('Authorization')==f'Bearer {self.server.token}'
    def nobody(self, code):
        "The code of a refusal: 401 for who gives no name, else this one"
        return code if self.headers.get('Authorization') else 401

    def handle_any(self):
        h,path = self.server,unquote(urlsplit(self.path).path)
        h.asked.append((self.command, path))
        data = self.body() if self.command in ('POST', 'PUT') else b''
        if h.broken and re.search(h.broken, path):
            return self.refuse(410, 'out of order')         # a 500 would be tried again for a minute
        if path=='/api/validate-yaml': return self.answer({'errors': [], 'warnings': []})
        if path=='/api/repos/create': return self.create(json.loads(data))
        if m := re.fullmatch(r'/lfs/(\w+)', path):
            assert hashlib.sha256(data).hexdigest()==m[1]
            h.blobs[m[1]] = data
            return self.answer()
        m = re.match(r'(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?$', path)
        repo,rest = m[1],m[2] or ''
        if repo not in h.repos or (repo in h.private and not self.may_write()):
            return self.refuse(self.nobody(404), 'Repository not found', 'RepoNotFound')
        if repo in h.gated and '/resolve/' in rest:
            return self.refuse(403, 'Access to this model is restricted', 'GatedRepo')
        if self.command!='GET' and self.command!='HEAD' and not self.may_write():
            return self.refuse(403, 'you may not write here')
        for pattern,f in ROUTES.items():
            if g := re.fullmatch(pattern, rest): return f(self, repo, data, *g.groups())
        self.refuse(404, f'the stub does not know {path}')
    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def create(self, asked):
        if not self.may_write(): return self.refuse(self.nobody(403), 'you may not create this repository')
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo.startswith('other/'): return self.refuse(403, 'you may not create a repository for other')
        if repo in self.server.repos:
            said = {'url': f'{self.server.url}/{repo}', 'error': 'You already created this model repo'}
            return self.answer(said, 409)
        self.server.repos[repo] = {'main': []}
        if asked.get('visibility')=='private' or asked.get('private'): self.server.private.add(repo)
        self.answer({'url': f'{self.server.url}/{repo}', 'name': repo, 'id': '1'})
    def branch(self, repo, data, name):
        if name in self.server.repos[repo]: return self.refuse(409, 'Reference already exists')
        self.server.repos[repo][name] = list(self.server.repos[repo]['main'])
        self.answer()
    def preupload(self, repo, data, revision):
        mode = lambda path: 'lfs' if path.endswith('.safetensors') else 'regular'
        files = [f['path'] for f in json.loads(data)['files']]
        self.answer({'files': [{'path': f, 'uploadMode': mode(f), 'shouldIgnore': False} for f in files]})
    def batch(self, repo, data):
        def one(oid, size):
            asked = {'oid': oid, 'size': size}
            if oid in self.server.blobs: return asked
            return {**asked, 'actions': {'upload': {'href': f'{self.server.url}/lfs/{oid}'}}}
        objects = [one(o['oid'], o['size']) for o in json.loads(data)['objects']]
        self.answer({'transfer': 'basic', 'objects': objects}, Content_Type='application/vnd.git-lfs+json')
    def commit(self, repo, data, revision):
        files = {}
        for o in map(json.loads, data.splitlines()):
            if o['key']=='file': files[o['value']['path']] = base64.b64decode(o['value']['content'])
            elif o['key']=='lfsFile': files[o['value']['path']] = self.server.blobs[o['value']['oid']]
        sha = self.server.add(repo, files, revision)
        self.answer({'success': True, 'commitOid': sha, 'commitUrl': f'{self.server.url}/{repo}/commit/{sha}'})
    def info(self, repo, data, revision=None):
        at = self.server.at(repo, revision or 'main')
        if at is None: return self.refuse(404, 'Invalid rev id', 'RevisionNotFound')
        self.answer({'id': repo, 'modelId': repo, 'sha': at[0], 'private': repo in self.server.private,
                     'siblings': [{'rfilename': n} for n in at[1]], 'tags': [], 'downloads': 0, 'likes': 0})
    def tree(self, repo, data, revision):
        at = self.server.at(repo, revision)
        if at is None: return self.refuse(404, 'Invalid rev id', 'RevisionNotFound')
        def one(n, v):
            file = {'type': 'file', 'path': n, 'size': len(v), 'oid': hashlib.sha1(v).hexdigest()}
            if not n.endswith('.safetensors'): return file
            return {**file, 'lfs': {'oid': hashlib.sha256(v).hexdigest(), 'size': len(v), 'pointerSize': 130}}
        self.answer([one(n, v) for n,v in at[1].items()])
    def resolve(self, repo, data, revision, name):
        at = self.server.at(repo, revision)
        if at is None: return self.refuse(404, 'Invalid rev id', 'RevisionNotFound')
        if name not in at[1]: return self.refuse(404, 'Entry not found', 'EntryNotFound')
        v = at[1][name]
        tag = f'"{hashlib.sha256(v).hexdigest()}"'
        self.answer(v, ETag=tag, X_Repo_Commit=at[0], Content_Type='application/octet-stream')

# What follows a repository's name in a path, and who answers it
ROUTES = {
    r'/branch/(.+)': Handler.branch,
    r'/preupload/(.+)': Handler.preupload,
    r'/info/lfs/objects/batch': Handler.batch,
    r'/commit/(.+)': Handler.commit,
    r'(?:/revision/(.+))?': Handler.info,
    r'/tree/([^/]+).*': Handler.tree,
    r'/resolve/([^/]+)/(.+)': Handler.resolve,
}
