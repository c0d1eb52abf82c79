"Catalogue cells, settings, a bundle's config.json and FITS headers that hypothesis makes up: a sentence, or it works"
import sys
from pathlib import Path
import pytest
pytest.importorskip('hypothesis')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'benchmarks'))
import fuzz

@pytest.fixture(scope='module')
def made(): return fuzz.tests()

@pytest.mark.slow
@pytest.mark.parametrize('what', ['catalogue', 'settings', 'bundle', 'fits'])
@pytest.mark.parametrize('seed', [0, 1, 3])
def test_only_sentences(made, what, seed): fuzz.run(*made[what], 150, seed)

@pytest.mark.parametrize('changed', [[('NAXIS', 10**12)], [('NAXIS', 1782563)], [('NAXIS1', 10**12)], [('BITPIX', 7)]])
def test_headers_that_were_found(made, changed):
    "astropy counted axes that the header claims, for hours"
    fuzz.judged(fuzz.fits_file, changed, None)

def test_what_is_no_sentence_is_found():
    def fault(): raise KeyError('a fault')
    def flood(): raise ValueError('x'*10**5)
    with pytest.raises(KeyError): fuzz.judged(fault)
    fuzz.judged(flood)                            # the command line shortens it
    with pytest.raises(AssertionError, match='without a word'): fuzz.judged(lambda: (_ for _ in ()).throw(ValueError()))
