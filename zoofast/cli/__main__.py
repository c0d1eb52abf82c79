"`python -m zoofast.cli`"
from zoofast.cli import main

if __name__=="__main__": main()
