/**
 * Waits until the registry answers on this agent's localhost:5000, then runs the body.
 *
 *     withRegistryTunnel {
 *         sh 'docker pull localhost:5000/team/app:1'
 *     }
 *
 * Options, all of them optional:
 *
 *     wait:     seconds to wait, 1 to 86400 (120)
 *     registry: HOST:PORT to wait for (localhost:5000); the body has it as REGISTRY
 *
 * If the registry is not ready, the build fails with the reason; the log has the script's own message above it.
 * The agent needs /usr/local/bin/tunnelmgr-wait, which `tunnelmgr hook wait` prints.
 */
def call(Map options = [:], Closure body) {
    def unknown = options.keySet() - ['wait', 'registry']
    if (unknown) {
        error("withRegistryTunnel: unknown option ${unknown.join(', ')}; known are wait and registry")
    }
    String wait = "${options.containsKey('wait') ? options['wait'] : 120}"
    String registry = options.containsKey('registry') ? options['registry'] : 'localhost:5000'
    // Both become part of a command.
    if (!(wait ==~ /[1-9][0-9]{0,4}/)) {
        error("withRegistryTunnel: wait must be a number of seconds from 1 to 86400, not ${wait}")
    }
    if (!(registry ==~ /[A-Za-z0-9.-]+:[0-9]+/)) {
        error("withRegistryTunnel: registry must be HOST:PORT, such as localhost:5000, not ${registry}")
    }
    int status = sh(
        label: "Wait for the registry on ${registry}",
        script: "TUNNELMGR_WAIT=${wait} TUNNELMGR_REGISTRY=${registry} /usr/local/bin/tunnelmgr-wait",
        returnStatus: true,
    )
    if (status != 0) {
        error("The registry on ${registry} cannot be used: ${meaning(status)}")
    }
    withEnv(["REGISTRY=${registry}"]) {
        body()
    }
}

private String meaning(int status) {
    switch (status) {
        case 69: return 'another process answers on its port (69)'
        case 75: return 'it was not ready in time (75)'
        case 77: return 'the controller refuses this agent (77)'
        case 78: return 'the wait is misconfigured (78)'
        case 127: return 'this agent has no /usr/local/bin/tunnelmgr-wait (127)'
        default: return "tunnelmgr-wait ended with status ${status}"
    }
}
