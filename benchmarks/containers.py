"""Images a second from files of many pictures, in the catalogue's order and at random: npy, npz, HDF5, Zarr, zip, tar

`python benchmarks/containers.py [--n 1500] [--size 128] [--rounds 3]`: all kinds take turns; medians. The same pictures
as a `.npy` each are the measure. HDF5 is chunked as h5py does it by default when it packs, as in Galaxy10."""
import argparse, io, statistics, tarfile, tempfile, time, zipfile
from pathlib import Path
import h5py, numpy as np, zarr
from zoofast.images import stacks
from zoofast.images.reader import ImageReader

def as_npy(a):
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()

def galaxies(n, size):
    "Pictures that pack about as well as real ones"
    rng,(y,x) = np.random.default_rng(0),np.mgrid[:size,:size]-size/2
    out = np.empty((n, size, size, 3), np.uint8)
    for px in out:
        light = 200*np.exp(-np.hypot(x, y*rng.uniform(1, 3))/rng.uniform(3, size/6))
        px[:] = np.clip(light[...,None]*[1, .8, .6]+rng.normal(12, 3, px.shape), 0, 255)
    return out

def write(folder, px):
    "Each kind: name -> places of all pictures"
    n,kinds = len(px),{}
    (folder/"files").mkdir()
    for i in range(n): (folder/"files"/f"{i}.npy").write_bytes(as_npy(px[i]))
    kinds["a .npy each"] = [f"{folder}/files/{i}.npy" for i in range(n)]
    np.save(folder/"a.npy", px)
    np.savez(folder/"a.npz", images=px)
    np.savez_compressed(folder/"packed.npz", images=px)
    with h5py.File(folder/"plain.h5", "w") as f: f["images"] = px
    with h5py.File(folder/"packed.h5", "w") as f:
        chunks = f.create_dataset("images", data=px, compression="gzip").chunks
    root = zarr.open_group(str(folder/"a.zarr"), mode="w")
    root.create_array("images", shape=px.shape, dtype=px.dtype, chunks=(16, *px.shape[1:]))[...] = px
    with zipfile.ZipFile(folder/"a.zip", "w") as z, tarfile.open(folder/"a.tar", "w") as t:
        for i in range(n):
            z.write(folder/"files"/f"{i}.npy", f"{i}.npy")
            t.add(folder/"files"/f"{i}.npy", f"{i}.npy")
    def places(file, place): return [f"{folder/file}::{place.format(i)}" for i in range(n)]
    kinds["npy"] = places("a.npy", "[{}]")
    kinds["npz"] = places("a.npz", "images[{}]")
    kinds["npz, packed"] = places("packed.npz", "images[{}]")
    kinds["HDF5"] = places("plain.h5", "images[{}]")
    kinds[f"HDF5, packed, chunks {chunks}"] = places("packed.h5", "images[{}]")
    kinds["Zarr, 16 a chunk"] = places("a.zarr", "images[{}]")
    kinds["zip"] = places("a.zip", "{}.npy")
    kinds["tar"] = places("a.tar", "{}.npy")
    return kinds

def rate(reader, places, most=20):
    "Images a second, of as many as are read in `most` seconds"
    start = time.perf_counter()
    for i,o in enumerate(places):
        reader.flux(o)
        if time.perf_counter()-start>most: break
    return (i+1)/(time.perf_counter()-start)

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--n", type=int, default=1500)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    reader,rng = ImageReader(a.size),np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        kinds = write(Path(folder), galaxies(a.n, a.size))
        packed = next(k for k in kinds if k.startswith("HDF5, packed"))
        found = {k: ([], []) for k in [*kinds, f"{packed}, each picture by itself"]}
        for _ in range(a.rounds):
            for k in found:
                places = kinds.get(k) or kinds[packed]
                stacks.MOST_BYTES = 2**27 if k in kinds else 0
                stacks._kept.cache_clear()
                found[k][0].append(rate(reader, places))
                found[k][1].append(rate(reader, [places[i] for i in rng.permutation(a.n)[:200]]))
    print(f"{a.n} pictures of {a.size} x {a.size} x 3 bytes, images a second, medians of {a.rounds} rounds\n")
    print("| file | in order | at random |\n| --- | --- | --- |")
    for k,(order,random) in found.items():
        print(f"| {k} | {statistics.median(order):.0f} | {statistics.median(random):.0f} |")

if __name__=="__main__": main()
