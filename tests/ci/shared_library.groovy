// Runs the step vars/withRegistryTunnel.groovy with stand-ins for the steps of Jenkins that it uses, by the Groovy that
// Jenkins contains (2.4). Arguments: the step's file, a program in place of tunnelmgr-wait, and the cases as JSON: a
// list of options. Prints the outcome of each case as JSON.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper

def (file, program, cases) = args as List

println JsonOutput.toJson(new JsonSlurper().parseText(cases).collect { options ->
    def outcome = [commands: [], environment: null, body: false, error: null]
    def step = new GroovyShell().parse(new File(file))
    step.binding.sh = { Map arguments ->
        assert arguments.returnStatus
        outcome.commands << arguments.script
        def process = ['sh', '-c', arguments.script.replace('/usr/local/bin/tunnelmgr-wait', program)].execute()
        process.waitForProcessOutput()
        process.exitValue()
    }
    step.binding.error = { String message -> throw new IllegalStateException(message) }
    step.binding.withEnv = { List variables, Closure inner ->
        outcome.environment = variables
        inner()
    }
    try {
        step.call(options) { outcome.body = true }
    } catch (IllegalStateException failed) {
        outcome.error = failed.message
    }
    outcome
})
