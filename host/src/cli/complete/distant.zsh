#compdef distant
# Completions of distant for zsh: eval "$(distant completions zsh)", or this as _distant in $fpath
_distant() {
    local line value
    local -a open open_shown closed closed_shown
    for line in "${(@f)$(command ${(Q)words[1]} complete zsh "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        value=${line%%$'\t'*}
        [[ -n $value ]] || continue
        # What goes on after these is part of the same word.
        if [[ $value == *[=/:,] ]]; then
            open+=("$value")
            open_shown+=("${line/$'\t'/  -- }")
        else
            closed+=("$value")
            closed_shown+=("${line/$'\t'/  -- }")
        fi
    done
    (( $#open )) && compadd -l -S '' -d open_shown -a open
    (( $#closed )) && compadd -l -d closed_shown -a closed
    (( $#open + $#closed ))
}
if [[ ${funcstack[1]} == _distant ]]; then
    _distant "$@"
else
    compdef _distant distant
fi
