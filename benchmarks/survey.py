"""Peak memory of `zoofast predict` for catalogues of several lengths, killed on the way and checked row by row.

    python benchmarks/survey.py [--rows 10000 1000000] [--catalog parquet] [--out folder] [--kills 3]
        [--encoder test_vit] [--size 32]

The catalogue points to 100 simulated galaxies again and again, and every 9973rd row to a file that is not there. The
encoder is one of timm's smallest, with random weights, so that rows and not pixels are what there is most of. The
command is killed with SIGKILL at equal distances on the way, given again, and ends; then every row is compared with
what one call for the 100 galaxies gives. Peak memory is the largest of all its processes, as the system counts it.
"""
import argparse, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, torch

ROOT = Path(__file__).resolve().parent.parent

def write_catalog(path, files, n, kind):
    "Write a catalogue of `n` rows in pieces, and give back its path"
    import pyarrow as pa, pyarrow.parquet as pq
    def rows(a, b):
        i = np.arange(a, b)
        there = np.asarray(files, dtype=object)[i%len(files)]
        return pd.DataFrame({
            "id_str": [f"{o:019d}" for o in i],
            "file_loc": np.where(i%9973==5, "gone.jpg", there),
            "z": i/2**20})
    pieces = ((a, rows(a, min(a+50_000, n))) for a in range(0, n, 50_000))
    if kind=="folder":
        path.mkdir()
        for a,t in pieces: t.to_parquet(path/f"part-{a:09d}.parquet", index=False)
        return path
    path = path.with_suffix(f".{kind}")
    if kind=="csv":
        for a,t in pieces: t.to_csv(path, mode="a", header=a==0, index=False)
        return path
    with pq.ParquetWriter(path, pa.Table.from_pandas(rows(0, 1), preserve_index=False).schema) as w:
        for _,t in pieces: w.write_table(pa.Table.from_pandas(t, preserve_index=False))
    return path

def command(bundle, catalog, out, kill_at):
    """Run it, and kill it once there are `kill_at` shards: its peak memory in MiB, seconds, the exit code, and seconds
    of CPU"""
    parts = out if out.suffix=="" else out.with_name(f"{out.name}.parts")
    start = time.perf_counter()
    words = [sys.executable, "-m", "zoofast.cli", "predict", bundle, catalog, "--out", out, "--columns", "z",
             "--batch-size", "256"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    o = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    while True:
        pid,status,used = os.wait4(o.pid, os.WNOHANG)
        if pid: break
        if kill_at and len(list(parts.glob("part-*.parquet")))>=kill_at: o.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    o.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter()-start
    peak = used.ru_maxrss/(2**20 if sys.platform=="darwin" else 2**10)
    return peak,took,o.returncode,used.ru_utime+used.ru_stime

def pieces_of(out):
    "The table that was written, piece by piece"
    import pyarrow.parquet as pq
    if out.suffix==".csv": yield from pd.read_csv(out, dtype={"id_str": str}, chunksize=50_000)
    elif out.is_dir(): yield from (pd.read_parquet(f) for f in sorted(out.glob("part-*")))
    else: yield from (b.to_pandas() for b in pq.ParquetFile(out).iter_batches(50_000))

def check(out, n, files, want):
    "Compare every row; gives back how many there are without a prediction"
    probs,at,bad = [c for c in want if c.startswith("morphology_") and c!="morphology_pred"],0,0
    for t in pieces_of(out):
        i = np.arange(at, at+len(t))
        gone = i%9973==5
        assert t.id_str.tolist()==[f"{o:019d}" for o in i] and np.array_equal(t.z, i/2**20)
        assert t.error.notna().to_numpy().tolist()==gone.tolist() and t.loc[gone, probs].isna().all(axis=None)
        ref = want.iloc[i%len(files)].reset_index(drop=True)
        assert t.file_loc[~gone].tolist()==ref.file_loc[~gone].tolist()
        assert t.morphology_pred[~gone].tolist()==ref.morphology_pred[~gone].tolist()
        assert np.abs(t[probs].to_numpy(float)-ref[probs].to_numpy(float))[~gone].max(initial=0)<1e-6
        at += len(t)
        bad += int(gone.sum())
    assert at==n
    return bad

def make_model(folder, args):
    "A survey and a bundle of random weights in `folder`: the catalogue, and what one call predicts for it"
    from zoofast.bundles.model import GalaxyModel
    from zoofast.bundles.bundle import write_bundle
    from zoofast.catalog.read import read_catalog
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.encoders.sources import create_encoder
    from zoofast.images.reader import ImageReader
    from zoofast.predict.table import predict_catalog
    from zoofast.simulate import simulate_survey
    from zoofast.tasks.classes import Classification
    df = read_catalog(simulate_survey(folder/"survey", n=100, size=args.size, fits=False, progress=False))
    task = Classification("morphology").fit(df)
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder(args.encoder, args.size, pretrained=False), task.n_out)
    write_bundle(folder/"bundle", GalaxyModel(net, task, ImageReader(args.size)))
    return df,predict_catalog(folder/"bundle", df, progress=False)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    p.add_argument("--catalog", default="parquet", choices=["parquet", "csv", "folder"])
    p.add_argument("--out", default="folder", choices=["folder", "parquet", "csv"])
    p.add_argument("--kills", type=int, default=3)
    p.add_argument("--encoder", default="test_vit")
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--folder", type=Path, help="Where to work; a temporary folder unless given")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        tmp = Path(tmp)
        df,want = make_model(tmp, args)
        files = df.file_loc.tolist()
        print(f"catalogue: {args.catalog}, out: {args.out}, encoder: {args.encoder} at {args.size} pixels\n"
              "    rows  kills  peak MiB of each process        seconds  rows without an image  "
              "all rows as they should be", flush=True)
        for n in args.rows:
            catalog = write_catalog(tmp/f"c{n}", files, n, args.catalog)
            out = tmp/f"out{n}{'' if args.out=='folder' else '.'+args.out}"
            shards = -(-n//10_000)
            kills = [round(shards*(i+1)/(args.kills+1)) for i in range(args.kills)] if shards>args.kills else []
            used = [command(tmp/"bundle", catalog, out, k) for k in [*kills, 0]]
            assert [o[2] for o in used]==[-signal.SIGKILL]*len(kills)+[0], [o[2] for o in used]
            peaks,seconds = " ".join(f"{o[0]:.0f}" for o in used),sum(o[1] for o in used)
            bad = check(out, n, files, want)
            print(f"{n:8}  {len(kills):5}  {peaks:30}  {seconds:7.0f}  {bad:21}  yes", flush=True)

if __name__=="__main__": main()
