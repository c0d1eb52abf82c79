"The zoofast command, verb by verb"

def main():
    "The `zoofast` command"
    from zoofast.cli.streams import sentences
    with sentences():
        from zoofast.cli.main import main
        main()
