# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_dm_thin_global_optspecs
    string join \n root= tree= json b/bytes H/no-header h/help V/version
end

function __fish_dm_thin_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_dm_thin_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_dm_thin_using_subcommand
    set -l cmd (__fish_dm_thin_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c dm-thin -n "__fish_dm_thin_needs_command" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_needs_command" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_needs_command" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -s V -l version -d 'Print version'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "trees" -d 'Every tree on this machine that is active'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "ls" -d 'The snapshots of the tree'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "list" -d 'The snapshots of the tree'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "tree" -d 'The snapshots, drawn below their parents'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "df" -d 'Space: data, metadata, the file system below'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "info" -d 'All that is known of a snapshot'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "which" -d 'The tree and the snapshot that a device belongs to'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "holders" -d 'Who has a snapshot open, in every mount namespace'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "check" -d 'Compares the tree with the kernel and the pool'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "repair" -d 'Corrects what `check` finds'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "init" -d 'Makes a tree'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "add" -d 'Adds a snapshot, of the base unless --of names a parent'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "rm" -d 'Removes snapshots'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "mv" -d 'Renames a snapshot'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "label" -d 'Shows or changes labels: KEY=VALUE sets one, KEY= removes it'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "commit" -d 'Seals a snapshot under another id'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "seal" -d 'Seals a snapshot: its content is final'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "unseal" -d 'Makes a sealed snapshot writable again'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "mount" -d 'Mounts a snapshot'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "umount" -d 'Unmounts a snapshot'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "unmount" -d 'Unmounts a snapshot'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "activate" -d 'Activates a snapshot, and prints the path of its device'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "deactivate" -d 'Deactivates a snapshot'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "resize" -d 'Makes a snapshot, its device and its file system larger'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "grow-pool" -d 'Makes the pool larger: in all so much data'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "ready" -d 'Keeps so many snapshots of a sealed parent, or of the base, ready'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "trim" -d 'Gives the pool what the file system of a snapshot does not use'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "diff" -d 'What differs between two sealed snapshots'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "send" -d 'Writes a sealed snapshot to standard output'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "receive" -d 'Reads what `send` wrote from standard input'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "import" -d 'Makes a snapshot of a raw image'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "export" -d 'Writes a sealed snapshot to a raw image'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "events" -d 'Events of the pool as they come, one line of JSON each, until the pool is gone'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "dump" -d 'The state: checkpoint and journal, merged, as JSON'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "repair-metadata" -d 'Repairs damaged metadata of the pool: see `--restore`'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "doctor" -d 'What this machine lacks, and what died on it, with the commands that mend it'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "docker" -d 'Reads the directory of Docker\'s devicemapper storage driver'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "close" -d 'Deactivates everything, and the pool'
complete -c dm-thin -n "__fish_dm_thin_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trees" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trees" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trees" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trees" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trees" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trees" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -l label -d 'Only those with that label' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -l sort -r -f -a "id\t''
age\t''
size\t''"
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -s l -l long -d 'Times, thin device ids and labels, too'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -s x -l exclusive -d 'What removing each would free, too: needs the lock, and reads the pool\'s metadata'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ls" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -l label -d 'Only those with that label' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -l sort -r -f -a "id\t''
age\t''
size\t''"
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -s l -l long -d 'Times, thin device ids and labels, too'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -s x -l exclusive -d 'What removing each would free, too: needs the lock, and reads the pool\'s metadata'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand list" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand tree" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand tree" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand tree" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand tree" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand tree" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand tree" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand df" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand df" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand df" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand df" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand df" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand df" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand info" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand info" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand info" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand info" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand info" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand info" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand which" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand which" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand which" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand which" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand which" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand which" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand holders" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand holders" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand holders" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand holders" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand holders" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand holders" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand check" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand check" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand check" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand check" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand check" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand check" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -s n -l dry-run -d 'Only say what would be done'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -s y -l yes -d 'Do not ask'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l data-size -d 'Of the pool' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l metadata-size -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l base-size -d 'Of each snapshot' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l filesystem -d 'ext4, xfs or none' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l device -d 'A whole device, that gets a label; without it loop files in the directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l data -d 'A device for the data' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l metadata -d 'A device for the metadata' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand init" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -l of -d 'The parent' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -l size -d 'At least the parent\'s size' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -s l -l label -d 'Labels, KEY=VALUE' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -l crash-consistent -d 'Of a mounted parent: do not freeze it; as after a power cut'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -s a -l activate -d 'Activate it, too, and print the path of its device'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand add" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -l no-children -d 'Refuse what has children'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -s n -l dry-run -d 'Only say what would be done'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -s y -l yes -d 'Do not ask'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand rm" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mv" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mv" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mv" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mv" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mv" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mv" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand label" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand label" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand label" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand label" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand label" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand label" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -s l -l label -d 'Labels, KEY=VALUE' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand commit" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand seal" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand seal" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand seal" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand seal" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand seal" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand seal" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unseal" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unseal" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unseal" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unseal" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unseal" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unseal" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -s o -l options -d 'Options of the file system, as of mount -o' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -s r -l read-only -d 'Read-only'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand mount" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand umount" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand umount" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand umount" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand umount" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand umount" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand umount" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unmount" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unmount" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unmount" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unmount" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unmount" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand unmount" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -s r -l read-only -d 'Read-only'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand activate" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand deactivate" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand deactivate" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand deactivate" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand deactivate" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand deactivate" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand deactivate" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand resize" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand resize" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand resize" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand resize" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand resize" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand resize" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand grow-pool" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand grow-pool" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand grow-pool" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand grow-pool" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand grow-pool" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand grow-pool" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -l of -d 'The parent; without it the base' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand ready" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trim" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trim" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trim" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trim" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trim" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand trim" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand diff" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand diff" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand diff" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand diff" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand diff" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand diff" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -l since -d 'Only what has changed since that snapshot' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -l recursive -d 'With all that descends from it'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -s n -l dry-run -d 'Say how much it would be'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand send" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand receive" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand receive" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand receive" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand receive" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand receive" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand receive" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -l size -d 'The size; without it the image\'s' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand import" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand export" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand export" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand export" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand export" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand export" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand export" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand events" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand events" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand events" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand events" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand events" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand events" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand dump" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand dump" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand dump" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand dump" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand dump" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand dump" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -l restore -d 'Take the last replacement back'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -s n -l dry-run -d 'Only say what would be done'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -s y -l yes -d 'Do not ask'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand repair-metadata" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand doctor" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand doctor" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand doctor" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand doctor" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand doctor" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -f -a "ls" -d 'Lists images, containers, and devices that belong to neither'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -f -a "export" -d 'Writes the file system of an image, container or device to a new file'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -f -a "adopt" -d 'Makes all devices that are whole snapshots of the tree of --root: copies that share blocks as they did'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -f -a "activate" -d 'Activates the pool on Docker\'s loop files again, for a tree that was adopted in place: after each start of the machine'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -f -a "deactivate" -d 'Removes the pool that `docker activate` or `docker adopt --in-place` has activated; the tree has to be closed'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and not __fish_seen_subcommand_from ls export adopt activate deactivate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -l metadata -d 'The pool\'s metadata, if it is not in DIR: the _tmeta volume of LVM' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -l data -d 'The pool\'s data, if it is not in DIR: the _tdata volume of LVM' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -s a -l all -d 'The devices of lower layers and of containers\' init layers, too'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l metadata -d 'The pool\'s metadata, if it is not in DIR: the _tmeta volume of LVM' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l data -d 'The pool\'s data, if it is not in DIR: the _tdata volume of LVM' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l raw -d 'A sparse raw image; the content is in its directory rootfs' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l tar -d 'A tar archive of rootfs, for `docker import`: needs root, and mounts a copy' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l metadata -d 'The pool\'s metadata, if it is not in DIR: the _tmeta volume of LVM' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l data -d 'The pool\'s data, if it is not in DIR: the _tdata volume of LVM' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l pool -d 'The active pool, with --in-place, if it is not on Docker\'s loop files: that of LVM' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l in-place -d 'Copies nothing: the tree is in Docker\'s own pool, which is activated; made if it is not there'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from adopt" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from activate" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from activate" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from activate" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from activate" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from activate" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from activate" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from deactivate" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from deactivate" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from deactivate" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from deactivate" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from deactivate" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from deactivate" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from help" -f -a "ls" -d 'Lists images, containers, and devices that belong to neither'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from help" -f -a "export" -d 'Writes the file system of an image, container or device to a new file'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from help" -f -a "adopt" -d 'Makes all devices that are whole snapshots of the tree of --root: copies that share blocks as they did'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from help" -f -a "activate" -d 'Activates the pool on Docker\'s loop files again, for a tree that was adopted in place: after each start of the machine'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from help" -f -a "deactivate" -d 'Removes the pool that `docker activate` or `docker adopt --in-place` has activated; the tree has to be closed'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand docker; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand close" -l root -d 'The directory of the tree' -r -F
complete -c dm-thin -n "__fish_dm_thin_using_subcommand close" -l tree -d 'The tree, by its UUID: it has to be active' -r
complete -c dm-thin -n "__fish_dm_thin_using_subcommand close" -l json -d 'JSON, for programs: a versioned object; amounts are bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand close" -s b -l bytes -d 'Amounts in bytes'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand close" -s H -l no-header -d 'Without header, separated by tabs'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand close" -s h -l help -d 'Print help'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "trees" -d 'Every tree on this machine that is active'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "ls" -d 'The snapshots of the tree'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "tree" -d 'The snapshots, drawn below their parents'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "df" -d 'Space: data, metadata, the file system below'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "info" -d 'All that is known of a snapshot'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "which" -d 'The tree and the snapshot that a device belongs to'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "holders" -d 'Who has a snapshot open, in every mount namespace'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "check" -d 'Compares the tree with the kernel and the pool'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "repair" -d 'Corrects what `check` finds'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "init" -d 'Makes a tree'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "add" -d 'Adds a snapshot, of the base unless --of names a parent'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "rm" -d 'Removes snapshots'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "mv" -d 'Renames a snapshot'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "label" -d 'Shows or changes labels: KEY=VALUE sets one, KEY= removes it'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "commit" -d 'Seals a snapshot under another id'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "seal" -d 'Seals a snapshot: its content is final'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "unseal" -d 'Makes a sealed snapshot writable again'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "mount" -d 'Mounts a snapshot'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "umount" -d 'Unmounts a snapshot'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "activate" -d 'Activates a snapshot, and prints the path of its device'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "deactivate" -d 'Deactivates a snapshot'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "resize" -d 'Makes a snapshot, its device and its file system larger'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "grow-pool" -d 'Makes the pool larger: in all so much data'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "ready" -d 'Keeps so many snapshots of a sealed parent, or of the base, ready'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "trim" -d 'Gives the pool what the file system of a snapshot does not use'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "diff" -d 'What differs between two sealed snapshots'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "send" -d 'Writes a sealed snapshot to standard output'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "receive" -d 'Reads what `send` wrote from standard input'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "import" -d 'Makes a snapshot of a raw image'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "export" -d 'Writes a sealed snapshot to a raw image'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "events" -d 'Events of the pool as they come, one line of JSON each, until the pool is gone'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "dump" -d 'The state: checkpoint and journal, merged, as JSON'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "repair-metadata" -d 'Repairs damaged metadata of the pool: see `--restore`'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "doctor" -d 'What this machine lacks, and what died on it, with the commands that mend it'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "docker" -d 'Reads the directory of Docker\'s devicemapper storage driver'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "close" -d 'Deactivates everything, and the pool'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and not __fish_seen_subcommand_from trees ls tree df info which holders check repair init add rm mv label commit seal unseal mount umount activate deactivate resize grow-pool ready trim diff send receive import export events dump repair-metadata doctor docker close help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and __fish_seen_subcommand_from docker" -f -a "ls" -d 'Lists images, containers, and devices that belong to neither'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and __fish_seen_subcommand_from docker" -f -a "export" -d 'Writes the file system of an image, container or device to a new file'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and __fish_seen_subcommand_from docker" -f -a "adopt" -d 'Makes all devices that are whole snapshots of the tree of --root: copies that share blocks as they did'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and __fish_seen_subcommand_from docker" -f -a "activate" -d 'Activates the pool on Docker\'s loop files again, for a tree that was adopted in place: after each start of the machine'
complete -c dm-thin -n "__fish_dm_thin_using_subcommand help; and __fish_seen_subcommand_from docker" -f -a "deactivate" -d 'Removes the pool that `docker activate` or `docker adopt --in-place` has activated; the tree has to be closed'
