# Completions of distant for fish: distant completions fish | source
function __distant_complete
    set -l words (commandline -opc)
    command $words[1] complete fish $words (commandline -ct) 2>/dev/null
end
complete -c distant -f -a '(__distant_complete)'
