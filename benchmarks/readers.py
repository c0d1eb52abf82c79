"""Which files other readers get right: zoofast, fitsbolt, fastai's PILImage, on the strange but right files of the
tests and a corpus of FITS.

    python benchmarks/readers.py [--data ../shared/data] [--list]

fitsbolt (PyPI) is installed into a folder of its own, once. A file counts as right where the picture is the galaxy, the
right way up, to 2 of 255 (linear scale; for the corpus, where the correlation with astropy's flux, row 0 at the bottom,
is above 0.99), as upside down where it is right but for that, as an error where the reader said so, and as wrong
otherwise.
"""
import argparse, json, os, subprocess, sys, tempfile, warnings
warnings.filterwarnings("ignore")
from datetime import date
from pathlib import Path
import numpy as np
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent/"tests")]
import test_hostile_images as hostile, test_images as corpus
from zoofast.images.reader import ImageReader

PLACE = Path(os.environ.get("ZOOFAST_BENCHMARKS") or Path.home()/".cache"/"zoofast-benchmarks")/"fitsbolt"

FITSBOLT = ["fitsbolt", "dotmap", "tifffile", "scikit-image", "opencv-python-headless", "imageio", "lazy_loader",
            "networkx"]

def get_fitsbolt():
    if not (PLACE/"fitsbolt").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(PLACE), "--no-deps"]
        subprocess.run([*pip, *FITSBOLT], check=True)
    sys.path.append(str(PLACE))
    import fitsbolt
    return fitsbolt

def readers():
    "Name -> function of a file and the limits of its flux that gives `(3 or 1, y, x)` from 0 to 1"
    fitsbolt = get_fitsbolt()
    from fastai.vision.core import PILImage
    def zoofast(f, low, high, side):
        return ImageReader(side, stretch=dict(kind="linear", low=low, high=high))(f).numpy()/255
    def bolt(f, low, high, side):
        im = fitsbolt.read_images(str(f), show_progress=False)
        if im.dtype==np.uint8: return np.moveaxis(im, -1, 0)/255
        if im.dtype==np.uint16 and not str(f).lower().endswith("fits"):
            px = fitsbolt.normalise_images(im, show_progress=False)
        else:
            px = fitsbolt.normalise_images(im, normalisation_method=fitsbolt.NormalisationMethod.LINEAR,
                                           norm_minimum_value=low, norm_maximum_value=high, show_progress=False,
                                           log_level="CRITICAL")
        return np.moveaxis(np.atleast_3d(px), -1, 0)/255
    def fastai(f, low, high, side): return np.asarray(PILImage.create(f)).transpose(2,0,1)/255
    return {"zoofast": zoofast, "fitsbolt": bolt, "fastai": fastai}

def judge(read, f, low, high, side, right):
    try: px = read(f, low, high, side)
    except Exception: return "error"              # other readers raise anything
    px = np.asarray(px, dtype=float)
    return "right" if right(px) else "upside down" if right(px[:,::-1]) else "wrong"

def is_galaxy(px):
    "Is it the galaxy of the tests, to 2 of 255, but for one corner?"
    if px.shape[-2:]!=(hostile.SIZE,)*2: return False
    off = np.abs(px.reshape(-1, hostile.SIZE, hostile.SIZE)*255-hostile.GALAXY); off[:,-5:,:5] = 0
    return off.max()<=2

def strange_files(read, folder):
    "`(group, name, verdict of each reader)` of files that are strange but right, and of each kind of raster image"
    side = hostile.SIZE
    for name,data,expected,kw in hostile.CASES:
        if expected!=hostile.RIGHT or callable(kw.get("stretch")): continue
        f,s = hostile.write(folder, name, data),kw.get("stretch") or dict(low=0, high=255)
        yield "strange but right",name,{k: judge(r, f, s["low"], s["high"], side, is_galaxy) for k,r in read.items()}
    for kind in corpus.RASTERS:
        if kind in ("1", "F") or "planes" in kind or "float" in kind: continue
        f = corpus.write_raster(folder/kind.replace(" ", "_"), kind, hostile.GALAXY.astype(np.uint8))
        yield "raster modes",kind,{k: judge(r, f, 0, 255, side, is_galaxy) for k,r in read.items()}

def is_like(want):
    "A function of pixels: do they follow the flux `want`, or the square in its middle?"
    side = min(want.shape[1:])
    y,x = ((n-side)//2 for n in want.shape[1:])
    def is_flux(px):
        for w in (want, want[:,y:y+side,x:x+side]):
            if px.shape[-2:]!=w.shape[-2:]: continue
            planes = px.reshape(-1, *w.shape[1:]) if px.shape[0]==len(w) else px.mean(0, keepdims=True)
            return np.corrcoef(np.broadcast_to(planes, w.shape).ravel(), w.ravel())[0,1]>0.99
        return False
    return is_flux

def corpus_files(read, folder):
    "The same of the corpus of FITS"
    for name in corpus.SENSIBLE:
        f = folder/name
        flux = corpus.astropys(f)
        if len(flux) not in (1, 3): continue
        good = np.isfinite(flux)
        low,high = np.percentile(flux[good], [0.5, 99.5])
        want = np.clip((np.where(good, flux, low)-low)/(high-low), 0, 1)
        side = min(flux.shape[1:])
        yield "corpus of FITS",name,{k: judge(r, f, low, high, side, is_like(want)) for k,r in read.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path(os.environ.get("ZOOFAST_DATA") or "../shared/data"))
    p.add_argument("--list", action="store_true", help="also say which files each gets wrong")
    args = p.parse_args()
    read = readers()
    with tempfile.TemporaryDirectory() as tmp: rows = list(strange_files(read, Path(tmp)))
    if args.data.is_dir(): rows += corpus_files(read, args.data/"fits_corpus")
    said = dict(date=str(date.today()), tables={})
    for group in dict.fromkeys(r[0] for r in rows):
        mine = [r for r in rows if r[0]==group]
        print(f"{group}, {len(mine)} files")
        for k in read:
            n = {v: sum(r[2][k]==v for r in mine) for v in ("right", "upside down", "error", "wrong")}
            said["tables"].setdefault(group, {})[k] = n
            wrong = ", ".join(r[1].split('/')[-1] for r in mine if r[2][k]=="wrong")
            print(f"  {k:9} right {n['right']:3}   upside down {n['upside down']:3}   error {n['error']:3}   "
                  f"wrong, and nothing said {n['wrong']:3}" + (f"   {wrong}" if args.list else ""))
    (HERE/"results"/"readers.json").write_text(json.dumps(said, indent=1)+"\n")

if __name__=="__main__": main()
