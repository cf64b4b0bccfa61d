// Parses the files that are its arguments, as Jenkins does before it runs them, without resolving any name.
import org.codehaus.groovy.control.CompilationUnit
import org.codehaus.groovy.control.Phases

args.each { file ->
    def unit = new CompilationUnit()
    unit.addSource(new File(file))
    unit.compile(Phases.CONVERSION)
}
