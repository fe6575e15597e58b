# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_vhost_user_zramctl_global_optspecs
    string join \n run-dir= api= d/disk= timeout= h/help V/version
end

function __fish_vhost_user_zramctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_vhost_user_zramctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_vhost_user_zramctl_using_subcommand
    set -l cmd (__fish_vhost_user_zramctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -s V -l version -d 'Print version'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "list" -d 'List the daemons of the run directory, with the columns and options of zramctl(8)'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "ls" -d 'List the daemons of the run directory, with the columns and options of zramctl(8)'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "show" -d 'Show all figures of one disk'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "get" -d 'Read an attribute of a disk, in the form that the kernel has for zram\'s'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "set" -d 'Write an attribute of a disk. What takes long, compact and recompress, is waited for as `compact` does it'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "resize" -d 'Grow a disk, while its guest runs'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "reset" -d 'Drop the contents of a disk and set its figures to 0. No guest may be connected'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "compact" -d 'Move objects out of sparse pages, and give the memory back to the host'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "jobs" -d 'List what runs in the background of a disk, or end it'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "add" -d 'Make a disk and start its daemon by systemd\'s unit vhost-user-zram@NAME.service. Without systemd print the command that starts it. If there is a file /etc/vhost-user-zram/NAME.toml, it is the daemon\'s --config'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "remove" -d 'End a disk, and what is in it: stop its unit, and remove the settings that `add` made. A NAME.toml stays'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "top" -d 'Show all disks as they change: ratio, memory, requests, latency, engine, jobs'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "metrics" -d 'Print the metrics of all daemons as one page in Prometheus\' text format'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "doctor" -d 'Look for misconfigurations of daemons, host and guests, and say what to do about each'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -s o -l output -d 'Columns to print, separated by commas. With a plus in front they come after the usual ones' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -s b -l bytes -d 'Print sizes in bytes'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -s n -l noheadings -d 'Do not print the headings'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -l output-all -d 'Print all columns'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -l raw -d 'Print columns with one blank between them and without alignment; `-` is what has no value'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -s J -l json -d 'Print JSON, with sizes in bytes'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand list" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -s o -l output -d 'Columns to print, separated by commas. With a plus in front they come after the usual ones' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -s b -l bytes -d 'Print sizes in bytes'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -s n -l noheadings -d 'Do not print the headings'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -l output-all -d 'Print all columns'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -l raw -d 'Print columns with one blank between them and without alignment; `-` is what has no value'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -s J -l json -d 'Print JSON, with sizes in bytes'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand ls" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand show" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand show" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand show" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand show" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand show" -s J -l json -d 'Print them as JSON, as the daemon has them'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand show" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand get" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand get" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand get" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand get" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand get" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand set" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand set" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand set" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand set" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand set" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand resize" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand resize" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand resize" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand resize" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand resize" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand reset" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand reset" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand reset" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand reset" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand reset" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand compact" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand compact" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand compact" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand compact" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand compact" -l no-wait -d 'Do not wait until it is done'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand compact" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -l cancel -d 'End the job of this number' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -s J -l json -d 'Print them as JSON'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand jobs" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -l size -d 'Size of the disk in bytes, or with a suffix K, M, G or T (powers of 1024) [default: that in /etc/vhost-user-zram/NAME.toml]' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -l enable -d 'Start the daemon at each boot, too'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand add" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand remove" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand remove" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand remove" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand remove" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand remove" -l force -d 'End it even if a guest is connected, or the daemon does not answer'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand remove" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -s i -l interval -d 'Time between two looks, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -s s -l sort -d 'Column by which disks are sorted' -r -f -a "name\t'Name, from the first'
memory\t'Memory, from the most'
ratio\t'Ratio of stored bytes to memory, from the least'
ops\t'Requests a second, from the most'
data\t'Bytes of pages, from the most'"
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l looks -d 'Looks before the frame of --once' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l width -d 'Columns of the frame of --once' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l height -d 'Lines of the frame of --once' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l once -d 'Take some looks, print one frame as text, and exit. The terminal is not needed'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -l svg -d 'Print the frame of --once as an SVG picture'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand metrics" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand metrics" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand metrics" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand metrics" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -l root -d 'Directory that holds proc, sys, etc and run, in place of /' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -l run-dir -d 'Directory with one directory for each daemon, in which its API is the socket `api.sock`' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -l api -d 'The API of a daemon, by the path of its socket, in place of those in the run directory. May be given several times' -r -F
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -s d -l disk -d 'Name of the daemon that is meant' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -l timeout -d 'Longest wait for a daemon\'s answer, in seconds' -r
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -l guest -d 'Look at this system as a guest with such disks, not as their host'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -s J -l json -d 'Print the findings as JSON'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "list" -d 'List the daemons of the run directory, with the columns and options of zramctl(8)'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "show" -d 'Show all figures of one disk'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "get" -d 'Read an attribute of a disk, in the form that the kernel has for zram\'s'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "set" -d 'Write an attribute of a disk. What takes long, compact and recompress, is waited for as `compact` does it'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "resize" -d 'Grow a disk, while its guest runs'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "reset" -d 'Drop the contents of a disk and set its figures to 0. No guest may be connected'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "compact" -d 'Move objects out of sparse pages, and give the memory back to the host'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "jobs" -d 'List what runs in the background of a disk, or end it'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "add" -d 'Make a disk and start its daemon by systemd\'s unit vhost-user-zram@NAME.service. Without systemd print the command that starts it. If there is a file /etc/vhost-user-zram/NAME.toml, it is the daemon\'s --config'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "remove" -d 'End a disk, and what is in it: stop its unit, and remove the settings that `add` made. A NAME.toml stays'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "top" -d 'Show all disks as they change: ratio, memory, requests, latency, engine, jobs'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "metrics" -d 'Print the metrics of all daemons as one page in Prometheus\' text format'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "doctor" -d 'Look for misconfigurations of daemons, host and guests, and say what to do about each'
complete -c vhost-user-zramctl -n "__fish_vhost_user_zramctl_using_subcommand help; and not __fish_seen_subcommand_from list show get set resize reset compact jobs add remove top metrics doctor help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
