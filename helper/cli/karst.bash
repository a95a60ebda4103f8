# Completion of the karst command for bash; zsh takes it behind `autoload -U bashcompinit; bashcompinit`.
_karst() {
    local IFS=$'\n'
    COMPREPLY=($("${COMP_WORDS[0]}" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    case ${COMPREPLY[0]-} in
    :files)
        COMPREPLY=()
        compopt -o default 2>/dev/null
        ;;
    :commands) COMPREPLY=($(compgen -c -- "${COMP_WORDS[COMP_CWORD]}")) ;;
    esac
}
complete -F _karst karst
