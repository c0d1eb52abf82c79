"Galaxies cut from survey tiles by their positions: the pixels are astropy's and reproject's, from check to report"
import os, shlex, subprocess, sys
import numpy as np, pandas as pd, pytest
from dataclasses import replace
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.table import Table
from astropy.wcs import WCS
from zoofast.all import *
from zoofast.catalog.stream import CatalogStream
from zoofast.catalog.tiles import with_places
from zoofast.core.errors import CatalogError, ImageError
from zoofast.images import cutouts
from zoofast.images.no_flux import has_flux
from zoofast.images.cutouts import read_cutouts
from zoofast.simulate import galaxy_flux

SIZE = 600                                                           # pixels of a tile
BANDS = {"g": (.5, SIZE), "r": (.5, SIZE), "z": (1., SIZE//2)}       # arcsec of a pixel, pixels

def tan(ra, dec, size=SIZE, scale=.5, turn=0., frame="ICRS", flip=False):
    "A tile's WCS"
    w = WCS(naxis=2)
    w.wcs.ctype,w.wcs.crval,w.wcs.crpix = ["RA---TAN", "DEC--TAN"],[ra, dec],[(size+1)/2]*2
    c,s = np.cos(np.radians(turn)),np.sin(np.radians(turn))
    w.wcs.cd = scale/3600*np.array([[-c, s], [s, c]])@np.diag([-1 if flip else 1, 1])
    w.wcs.radesys = frame
    if frame=="FK5": w.wcs.equinox = 2000
    return w

def write_tile(path, data, wcs, **header):
    "A tile, tile-compressed without loss where its name ends in .fz"
    head = fits.Header({**wcs.to_header(), **header})
    if path.suffix!=".fz": fits.writeto(path, data, head)
    else: fits.CompImageHDU(data, head, quantize_level=0, compression_type="GZIP_1").writeto(path)
    return str(path)

def stamp(flux, size):
    "The middle of a galaxy's image, its mean over blocks where pixels are larger"
    k = flux.shape[0]//size
    return flux.reshape(size, k, size, k).mean((1, 3))

@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Four overlapping tiles in three bands across right ascension 0, one of them turned by 8 degrees, z with larger
    pixels, and 120 positions of two kinds of galaxies"""
    folder,rng = tmp_path_factory.mktemp("tiles"),np.random.default_rng(0)
    step = .9*SIZE*.5/3600
    centres = [((359.98+i*step)%360, 2.+j*step) for i in range(2) for j in range(2)]
    n = 120
    ra = (359.98+rng.uniform(-.45, 1.45, n)*step)%360
    dec = 2.+rng.uniform(-.45, 1.45, n)*step
    kinds = np.where(np.arange(n)%2, "edge_on", "smooth")
    galaxies = [galaxy_flux(np.random.default_rng(i), k, 64)[0] for i,k in enumerate(kinds)]
    for t,(a,d) in enumerate(centres):
        for k,(band,(scale,size)) in enumerate(BANDS.items()):
            wcs = tan(a, d, size, scale, turn=8. if t==3 else 0.)
            sky = rng.normal(0, .01, (size, size)).astype(np.float32)
            for i,(x,y) in enumerate(np.stack(wcs.world_to_pixel_values(ra, dec), 1)):
                side = round(32/scale)
                x,y = round(x)-side//2,round(y)-side//2
                flux = stamp(galaxies[i][k], side)
                lo,hi = np.maximum([x, y], 0),np.minimum([x+side, y+side], size)
                if (lo>=hi).any(): continue
                sky[lo[1]:hi[1],lo[0]:hi[0]] += flux[lo[1]-y:hi[1]-y,lo[0]-x:hi[0]-x]
            write_tile(folder/f"t{t}_{band}.fits{'.fz' if t==1 else ''}", sky, wcs)
    df = pd.DataFrame({"id_str": [f"J{i}" for i in range(n)], "ra": ra, "dec": dec, "kind": kinds})
    df.to_csv(folder/"positions.csv", index=False)
    return folder,df,{b: str(folder/f"t*_{b}.fits*") for b in BANDS}

def parts(file_loc): return [o.split("::") for o in file_loc.split("|")]

def by_astropy(file_loc, n):
    "The cutouts of bands that have the first one's pixels"
    out = []
    for path,place in parts(file_loc):
        ra,dec = map(float, place.removeprefix("radec=").split(","))
        h = next(o for o in fits.open(path) if o.data is not None)
        out.append(Cutout2D(h.data, SkyCoord(ra, dec, unit="deg"), n, WCS(h.header), "partial", np.nan).data[::-1])
    return np.stack(out)

def test_each_galaxy_is_found_in_the_tile_with_most_room(survey):
    folder,df,tiles = survey
    found = read_catalog(folder/"positions.csv", tiles=tiles)
    files = {b: sorted(folder.glob(f"t*_{b}.fits*")) for b in BANDS}
    rooms = {}
    for f in files["g"]:
        w = WCS(next(h.header for h in fits.open(f) if h.header.get("NAXIS")==2))
        x,y = w.world_to_pixel_values(df.ra, df.dec)
        rooms[f] = np.minimum(np.minimum(x+.5, SIZE-.5-x), np.minimum(y+.5, SIZE-.5-y))
    best = pd.DataFrame(rooms).idxmax(axis=1)
    assert best.nunique()==4
    for loc,want in zip(found.file_loc, best):
        assert [p.split("/")[-1][:4] for p,_ in parts(loc)]==[f"{want.name[:3]}{b}" for b in BANDS]
        assert len({place for _,place in parts(loc)})==1

@pytest.mark.slow
def test_pixels_are_those_of_cutout2d(survey):
    folder,df,tiles = survey
    rows = read_catalog(folder/"positions.csv", tiles={b: tiles[b] for b in "gr"}).file_loc
    plain = [o for o in rows if "/t3_" not in o]
    for n in (32, 45):
        for align in (True, False):
            reader = ImageReader(32, channels=2, cutout=n, align=align)
            for loc in plain[:20]: np.testing.assert_array_equal(reader.flux(loc), by_astropy(loc, n))
    turned = next(o for o in rows if "/t3_" in o)
    as_it_is = ImageReader(32, channels=2, cutout=32, align=False)
    np.testing.assert_array_equal(as_it_is.flux(turned), by_astropy(turned, 32))
    assert not np.allclose(replace(as_it_is, align=True).flux(turned), by_astropy(turned, 32), atol=.02)

def test_resampled_pixels_are_those_of_reproject(survey):
    reproject = pytest.importorskip("reproject")
    folder,df,tiles = survey
    rows = read_catalog(folder/"positions.csv", tiles=tiles).file_loc
    loc = next(o for o in rows if "/t3_" in o)
    ra,dec = map(float, parts(loc)[0][1].removeprefix("radec=").split(","))
    grid = tan(ra, dec, 40)
    px = ImageReader(32, cutout="20 arcsec").flux(loc)
    assert px.shape==(3, 40, 40)
    for band,(path,_) in zip(px, parts(loc)):
        h = fits.open(path)[0]
        wanted = reproject.reproject_interp((h.data, WCS(h.header)), grid, shape_out=(40, 40), return_footprint=False)
        np.testing.assert_allclose(band[::-1], wanted, atol=1e-4)

def blob(wcs, size, at, sigma=2.):
    "Round blobs `(ra, dec, peak)` in a tile"
    yy,xx = np.mgrid[:size,:size]
    def one(a, d, peak):
        x,y = wcs.world_to_pixel(SkyCoord(a, d, unit="deg"))
        return peak*np.exp(-((xx-x)**2+(yy-y)**2)/2/sigma**2)
    return sum(one(*o) for o in at).astype(np.float32)

@pytest.mark.parametrize("how", [{}, dict(turn=30.), dict(turn=180.), dict(flip=True), dict(frame="FK5"),
                                 dict(turn=-75., frame="FK5")], ids=str)
def test_north_is_up_and_east_is_left(tmp_path, how):
    ra,dec = 10.01,60.02
    north,east = (ra, dec+6/3600, 6.),(ra+6/3600/np.cos(np.radians(dec)), dec, 3.)
    wcs = tan(10., 60., 400, .5, **how)
    path = write_tile(tmp_path/"t.fits", blob(wcs, 400, [(ra, dec, 9.), north, east]), wcs)
    px = read_cutouts([(path, f"radec={ra},{dec}")], "20 arcsec")[0]
    assert px.shape==(40, 40)
    def peak(y, x): return px[y-1:y+2,x-1:x+2].max()
    assert peak(20, 20)>8 and 5<peak(20-12, 20)<6.6 and 2.5<peak(20, 20-12)<3.6
    assert peak(20+12, 20)<1 and peak(20, 20+12)<1

def test_at_the_edge_there_is_no_flux_and_outside_no_picture(tmp_path):
    wcs,data = tan(150., 2., 100),np.ones((100, 100), np.int16)
    data[50,50] = -1
    path = write_tile(tmp_path/"t.fits", data, wcs, BLANK=-1)
    px = read_cutouts([(path, "xy=2,50")], 20)[0]
    assert px.dtype==np.float32 and np.isnan(px[:,:8]).all() and (px[:,8:]==1).all()
    assert np.isnan(read_cutouts([(path, "xy=50,50")], 9)[0]).sum()==1
    reader = ImageReader(32, cutout=20)
    for place,why in [("xy=120,50", "outside this tile"), ("radec=151,2", "outside this tile"),
                      ("xy=a,2", "two numbers"), ("radec=330,-2", "outside this tile")]:
        with pytest.raises(ImageError, match=why): reader(f"{path}::{place}")
    with pytest.raises(ImageError, match="cutout="): ImageReader(32)(f"{path}::xy=2,50")
    with pytest.raises(ImageError, match="no place to cut from"): reader(path)
    with pytest.raises(ValueError, match="20 arcsec"): ImageReader(cutout="20")

@pytest.mark.parametrize("flag", [-9999, 1e30, np.nan])
def test_a_flag_in_a_turned_tile_is_not_mixed_with_flux(tmp_path, flag):
    "Nor in a band that is resampled"
    rng = np.random.default_rng(0)
    data = rng.normal(5, .1, (200, 200)).astype(np.float32)
    data[90:100,:] = flag
    turned = write_tile(tmp_path/"turned.fits", data, tan(10., 2., 200, turn=30.))
    px = ImageReader(32, channels=1, cutout=60).flux(f"{turned}::radec=10,2")
    left = px[has_flux(px)]
    assert 4<left.min() and left.max()<6 and .1<1-has_flux(px).mean()<.4

def test_numbers_with_a_scale_and_packed_tiles(tmp_path):
    counts = np.random.default_rng(0).integers(0, 60000, (200, 300)).astype(np.uint16)
    wcs = tan(10., 2., 200)
    fits.writeto(tmp_path/"u.fits", counts, wcs.to_header())
    fits.writeto(tmp_path/"u.fits.gz", counts, wcs.to_header())
    fits.CompImageHDU(counts, wcs.to_header(), name="SCI").writeto(tmp_path/"u.fits.fz")
    for name in ("u.fits", "u.fits.gz", "u.fits.fz"):
        px = read_cutouts([(str(tmp_path/name), "xy=270,30")], 80)[0][::-1]
        np.testing.assert_array_equal(px, Cutout2D(counts.astype(float), (270, 30), 80, mode="partial",
                                                   fill_value=np.nan).data)

def test_a_cutout_reads_its_part_of_a_compressed_tile(tmp_path, monkeypatch):
    path = write_tile(tmp_path/"t.fits.fz", np.zeros((400, 400), np.float32), tan(10., 2., 400))
    def whole(self): raise AssertionError("the whole tile is read")
    monkeypatch.setattr(fits.CompImageHDU, "data", property(whole))
    assert read_cutouts([(path, "xy=200,200")], 32).shape==(1, 32, 32)

def test_a_row_in_no_tile_is_bad_and_says_why(survey):
    folder,df,tiles = survey
    more = pd.concat([df[:3], pd.DataFrame({"id_str": ["far", "none"], "ra": [30., np.nan], "dec": [40., 2.]})])
    res = check_catalog(read_catalog(more, tiles=tiles), open_images=ImageReader(32, cutout=32))
    assert list(res.bad.id_str)==["far", "none"] and len(res.ok)==3
    assert "radec=30.0,40.0 lies in no tile of any band; the nearest, t" in res.bad.reason[0]
    assert res.bad.reason[0].count("lies in")==1 and " deg away" in res.bad.reason[0]
    assert "is no position" in res.bad.reason[1]
    said = represent("test_convnext", more, reader=ImageReader(32, cutout=32), pretrained=False, tiles=tiles,
                     progress=False).error
    assert list(said.isna())==[True]*3+[False]*2 and said[3]==res.bad.reason[0] and said[4]==res.bad.reason[1]
    north = read_catalog(df.assign(dec=df.dec), tiles={**tiles, "z": str(folder/"t0_z.fits")})
    gone = check_catalog(north, open_images=ImageReader(32, cutout=32)).bad
    with pytest.raises(ImageError, match="^radec=.* lies in no tile of band z; the nearest, t0_z"):
        ImageReader(32, cutout=32)(gone.file_loc.iloc[0])
    assert 30<len(gone)<120 and gone.reason.str.contains("lies in no tile of band z; the nearest, t0_z").all()
    assert len(check_catalog(read_catalog(df[:3], tiles=tiles)).ok)==3          # without a reader

def test_columns_of_positions(survey):
    folder,df,tiles = survey
    found = read_catalog(df, tiles=tiles["g"])
    tile = found.file_loc.str.split("::").str[0]
    named = df.assign(file_loc=tile)
    assert list(with_places(read_catalog(named)).file_loc)==list(found.file_loc)
    assert list(read_catalog(named).file_loc)==list(tile)                       # as long as nothing is to be cut
    with pytest.raises(CatalogError, match="no columns ra and dec"): read_catalog(df.drop(columns="ra"), tiles=tiles)
    with pytest.raises(CatalogError, match="there is no such file"): read_catalog(df, tiles=str(folder/"*.tiles"))
    with pytest.raises(CatalogError, match="leave out file_col"): read_catalog(df, tiles=tiles, file_col="image")

def test_open_tiles_are_few(survey, monkeypatch):
    "Compressed ones stay open, a few; of others nothing does"
    folder,df,tiles = survey
    monkeypatch.setattr(cutouts, "OPEN_TILES", 2)
    rows,reader = read_catalog(df, tiles=tiles).file_loc,ImageReader(32, cutout=32)
    cutouts._kept.__dict__.clear()
    for o in rows[~rows.str.contains("/t1_")][:6]: reader.flux(o)
    def opened():
        files = [os.path.realpath(f"/proc/self/fd/{o}") for o in os.listdir("/proc/self/fd")]
        return [o for o in files if o.startswith(str(folder))]
    assert not cutouts._kept.tiles and not opened() and 3<=len(cutouts._kept.known)<=9
    for o in rows[rows.str.contains("/t1_")][:6]:
        reader.flux(o)
        assert len(cutouts._kept.tiles)==3 and len(opened())>=3       # those of the galaxy in hand

def test_memory_does_not_grow_with_what_was_read(tmp_path):
    "A tile of 20,000 pixels a side costs a cutout and not a gigabyte: what was mapped for a cutout is let go"
    path,n = tmp_path/"t.fits",20_000
    head = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", n), ("NAXIS2", n)])
    head.update(tan(10., 2., n).to_header())
    head.tofile(path)
    os.truncate(path, path.stat().st_size+4*n*n//2880*2880+2880)      # a sparse file
    code = """import resource, sys
from zoofast.images.cutouts import read_cutouts
read_cutouts([(sys.argv[1], "xy=9000,200")], 256)
def largest(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = largest()
for y in range(200, 19_800, 280): read_cutouts([(sys.argv[1], f"xy={y},{y}")], 256)
print(largest()-before)"""
    grown = int(subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout)
    assert grown<16*1024, f"{grown} KiB of a tile of 1.6 GB"

@pytest.mark.slow
def test_from_positions_to_predictions_and_report(survey, tmp_path):
    "Trained on positions; a bundle predicts positions by the same cutouts, as the same model does ready-made ones"
    folder,df,tiles = survey
    reader = ImageReader(32, stretch={"kind": "asinh", "low": 0, "high": .2}, cutout="16 arcsec")
    rows = read_catalog(folder/"positions.csv", tiles=tiles)
    assert not len(check_catalog(rows, "kind", open_images=reader).bad)
    dls = GalaxyDataLoaders.from_catalog(rows, "kind", reader=reader, batch_size=16, progress=False)
    learn = galaxy_learner(dls, "resnet18", pretrained=False, save_dir=tmp_path/"run")
    learn.fit(1)
    bundle = tmp_path/"bundle"
    learn.save_bundle(bundle)
    assert load_bundle(bundle).reader.cutout=="16 arcsec"
    preds = predict_catalog(bundle, rows, progress=False)
    assert preds.error.isna().all() and list(preds.file_loc)==list(rows.file_loc)
    made = []
    for i,o in enumerate(rows.file_loc):
        fits.writeto(tmp_path/f"{i}.fits", reader.flux(o)[:,::-1])
        made.append(str(tmp_path/f"{i}.fits"))
    model = load_bundle(bundle)
    model.reader = replace(model.reader, cutout=None)
    ready = predict_catalog(model, rows.assign(file_loc=made), progress=False)
    cols = [c for c in preds if c.startswith("kind_")]
    assert ready.error.isna().all()
    for c in cols[1:]: np.testing.assert_allclose(preds[c], ready[c], atol=1e-6)
    tile = rows.assign(file_loc=["|".join(p for p,_ in parts(o)) for o in rows.file_loc])
    tile.to_csv(tmp_path/"tiles_named.csv", index=False)
    named = predict_catalog(bundle, tmp_path/"tiles_named.csv", tmp_path/"out.csv", progress=False)
    assert list(named.file_loc)==list(rows.file_loc) and all(np.allclose(named[c], preds[c]) for c in cols[1:])
    page = make_report(bundle, tmp_path/"report.html", rows, progress=False)
    assert "data:image" in (tmp_path/"report.html").read_text(), page

@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "fits", "DataFrame"])
def test_a_catalogue_in_pieces_finds_the_same_tiles(survey, tmp_path, kind):
    "Also where a position is missing, and columns have a survey's own names"
    folder,df,tiles = survey
    df = df.rename(columns={"ra": "RA", "dec": "DEC"}).astype({"RA": object})
    if kind.startswith("csv"): df.loc[7, "RA"] = "NA"
    df["RA"] = df.RA if kind.startswith("csv") else df.RA.astype(float)
    path = tmp_path/f"c.{kind}"
    if kind.startswith("csv"): df.to_csv(path, index=False)
    elif kind=="parquet": df.to_parquet(path, row_group_size=50)
    elif kind=="fits": Table.from_pandas(df).write(path)
    source = df if kind=="DataFrame" else path
    stream = CatalogStream(source, tiles=tiles, columns=["kind"])
    pieces = [stream.rows(p, k*50).to_pandas() for k,p in stream.pieces(50)]
    found = pd.concat(pieces, ignore_index=True)
    want = read_catalog(source, tiles=tiles)
    assert list(found.file_loc)==list(want.file_loc) and list(found.id_str)==list(want.id_str)
    assert list(found.kind)==list(df.kind) and stream.n_rows==120
    if kind.startswith("csv"): assert found.file_loc[7].startswith("::radec=nan") and "no position" in found.file_loc[7]

def test_other_tiles_are_another_catalogue(survey, tmp_path):
    "What a table of predictions goes on with knows them"
    folder,df,tiles = survey
    one = CatalogStream(df, tiles=tiles["g"]).identity
    assert one==CatalogStream(df, tiles=tiles["g"]).identity!=CatalogStream(df, tiles=tiles["r"]).identity

def test_what_tiles_are_for_is_said_early(survey, tmp_path):
    folder,df,tiles = survey
    whole,cuts = ImageReader(32),ImageReader(32, cutout=32)
    with pytest.raises(CatalogError, match="tiles= needs the size of a galaxy's image"):
        GalaxyDataLoaders.from_catalog(df, "kind", reader=whole, tiles=tiles)
    with pytest.raises(CatalogError, match="tiles= needs the size of a galaxy's image"):
        represent("test_convnext", df, reader=whole, pretrained=False, tiles=tiles, progress=False)
    with pytest.raises(CatalogError, match="tiles= has the tiles' paths; leave out image_dir="):
        represent("test_convnext", df, reader=cuts, pretrained=False, tiles=tiles, image_dir=folder, progress=False)
    with pytest.raises(CatalogError, match="or tiles= to find its galaxies"): read_catalog(df)
    got = represent("test_convnext", df[:9], reader=cuts, pretrained=False, tiles=tiles, progress=False)
    assert list(got.file_loc)==list(read_catalog(df[:9], tiles=tiles).file_loc) and got.error.isna().all()

@pytest.mark.slow(but=1)
@pytest.mark.parametrize("words,says", [
    (["check", "{c}", "--tiles", "{g}"], "--tiles needs the size of a galaxy's image"),
    (["check", "{c}", "--tiles", "g={g}", "--tiles", "{g}", "--cutout", "32"], "other tiles have a band"),
    (["finetune", "{c}", "--tiles", "{g}", "--cutout", "32", "--files", "a{{id_str}}.fits", "--label", "kind",
      "--encoder", "resnet18", "--save-dir", "run"], "leave out --file-col and --files"),
    (["check", "{c}", "--cutout", "32"], "or --tiles to find its galaxies in a survey's tiles"),
    (["represent", "resnet18", "{c}", "--out", "x.csv", "--tiles", "{g}"], "--tiles needs the size"),
    (["predict", "{b}", "{c}", "--out", "x.csv", "--tiles", "{g}", "--image-dir", "."], "leave out --image-dir")],
    ids=lambda o: "" if isinstance(o, list) else o)
def test_mistakes_in_a_shell(survey, run_zoofast, tmp_path, words, says):
    folder,df,tiles = survey
    (tmp_path/"b").mkdir()
    (tmp_path/"b"/"config.json").write_text("{}")
    named = dict(c=folder/"positions.csv", g=tiles["g"], b=tmp_path/"b")
    res = run_zoofast(*(o.format(**named) for o in words), cwd=tmp_path)
    assert res.returncode==2 and says in res.stderr, res.stderr

@pytest.mark.slow
def test_from_positions_alone_in_a_shell(survey, run_zoofast, tmp_path):
    "Check, training, prediction, features and the report, of a table of ids and positions"
    folder,df,tiles = survey
    where = [folder/"positions.csv", *(w for b,p in tiles.items() for w in ("--tiles", f"{b}={p}"))]
    how = ["--size", 32, "--cutout", "16 arcsec"]
    res = run_zoofast("check", *where, *how, "--label", "kind")
    assert res.returncode==0 and "all 120 rows" in res.stdout, res.stderr
    assert "120 galaxies in 12 tiles" in res.stdout, res.stdout
    res = run_zoofast("finetune", *where, *how, "--label", "kind", "--encoder", "test_convnext", "--random-weights",
                      "--epochs", 1, "--save-dir", tmp_path/"run")
    assert res.returncode==0, res.stderr
    hint = shlex.split(next(l for l in res.stdout.splitlines() if l.strip().startswith("zoofast predict")))[1:]
    assert hint.count("--tiles")==3
    hint[hint.index("predictions.parquet")] = tmp_path/"p.parquet"
    res = run_zoofast(*hint, cwd=tmp_path)
    assert res.returncode==0, res.stderr
    preds,rows = pd.read_parquet(tmp_path/"p.parquet"),read_catalog(folder/"positions.csv", tiles=tiles)
    assert list(preds.file_loc)==list(rows.file_loc) and preds.error.isna().all()
    want = predict_catalog(tmp_path/"run", df, tiles=tiles, progress=False)
    assert np.allclose(preds.kind_edge_on, want.kind_edge_on, atol=1e-5)
    res = run_zoofast("represent", tmp_path/"run", *where, "--out", tmp_path/"f.parquet")
    assert res.returncode==0 and pd.read_parquet(tmp_path/"f.parquet").error.isna().all(), res.stderr
    res = run_zoofast("report", tmp_path/"run", "--catalog", *where, "--out", tmp_path/"r.html")
    assert res.returncode==0, res.stderr
    page = (tmp_path/"r.html").read_text()
    assert "120 galaxies" in page and page.count("data:image")>5

@pytest.mark.slow
def test_from_the_shell(survey, run_zoofast, tmp_path):
    "A catalogue that names tiles, and positions in two columns: check, training and predictions cut the galaxies"
    folder,df,tiles = survey
    placed = read_catalog(df.assign(file_loc=""), tiles=tiles["g"])
    bare = placed.assign(file_loc=placed.file_loc.str.partition("::")[0])
    bare.to_csv(tmp_path/"c.csv", index=False)
    words = [tmp_path/"c.csv", "--label", "kind", "--channels", 1, "--size", 32]
    res = run_zoofast("check", *words, "--cutout", 40)
    assert res.returncode==0 and "all 120 rows" in res.stdout, res.stderr+res.stdout
    res = run_zoofast("check", *words, "--cutout", "20 parsec")
    assert res.returncode==2 and res.stderr.startswith("zoofast: --cutout '20 parsec' must be"), res.stderr
    more = ["--encoder", "test_convnext", "--random-weights", "--epochs", 1, "--save-dir", tmp_path/"run"]
    res = run_zoofast("finetune", *words, "--cutout", "20 arcsec", *more)
    assert res.returncode==0, res.stderr
    res = run_zoofast("predict", tmp_path/"run", tmp_path/"c.csv", "--out", tmp_path/"p.parquet")
    assert res.returncode==0, res.stderr
    preds = pd.read_parquet(tmp_path/"p.parquet")
    model = load_bundle(tmp_path/"run")
    assert model.reader.cutout in ("20 arcsec", 20.) and list(preds.file_loc)==list(placed.file_loc)
    want = predict_catalog(model, placed, progress=False)
    assert np.allclose(preds.kind_edge_on, want.kind_edge_on, atol=1e-5) and preds.error.isna().all()
