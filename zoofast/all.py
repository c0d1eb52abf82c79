"Everything a notebook needs: `from zoofast.all import *`"
